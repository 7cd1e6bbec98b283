import json
import math

import numpy as np
import pytest
from scipy import stats

from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import intervals, metrics


def logits_of(ranking):
    ranking = np.asarray(ranking, np.float64)
    return np.stack([np.zeros_like(ranking), ranking], axis=1)


def sample(number, separation=1.0, seed=0, fakes=0.5):
    """Labels and rankings, normal in both classes."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(number) < fakes * number).astype(int)
    return labels, rng.normal(size=number) + separation * labels


def auc_interval(labels, ranking, groups=None, **options):
    ranks = intervals.Ranks(labels, np.asarray(ranking, np.float64))

    def auc(counts):
        return ranks(counts, ("auc",))

    return intervals.bootstrap(labels, auc, groups, **options).interval("auc")


# The figures of a resample are those of its images.


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("groups", [None, [str(i // 3) for i in range(200)]])
def test_figures_of_resamples_are_those_of_the_drawn_images(ties, groups):
    labels, ranking = sample(200)
    if ties:
        ranking = np.round(ranking)
    ranks = intervals.Ranks(labels, ranking)
    drawn = []

    def figures(counts):
        drawn.append(counts)
        return ranks(counts)

    found = intervals.bootstrap(labels, figures, groups, resamples=25).values
    [counts] = drawn
    assert counts.shape == (25, 200)
    for row, times in enumerate(counts):
        images = np.repeat(np.arange(200), times)
        expected = metrics.binary_metrics(labels[images], logits_of(ranking[images]))
        for name in intervals.RANK_FIGURES:
            assert found[name][row] == pytest.approx(expected[name], abs=1e-12), name


def test_resamples_are_made_in_blocks(monkeypatch):
    labels, ranking = sample(50)
    expected = auc_interval(labels, ranking)
    monkeypatch.setattr(intervals, "_BLOCK", 170)
    rows = []

    def figures(counts):
        rows.append(len(counts))
        return intervals.Ranks(labels, ranking)(counts)

    found = intervals.bootstrap(labels, figures)
    assert rows == [3] * 666 + [2]
    assert found.describe()["resamples"] == 2000
    assert found.interval("auc") == pytest.approx(expected, abs=0.02)


# What is drawn.


def counts_of(labels, groups, resamples=200):
    drawn = []

    def figures(counts):
        drawn.append(counts)
        return {"none": np.zeros(len(counts))}

    made = intervals.bootstrap(labels, figures, groups, resamples=resamples)
    return np.concatenate(drawn), made


@pytest.mark.parametrize("groups", [None, [f"g{i}" for i in range(30)]])
def test_single_images_are_drawn_within_their_class(groups):
    labels = np.arange(30) % 3 == 0
    counts, made = counts_of(labels.astype(int), groups)
    assert (counts[:, labels].sum(axis=1) == 10).all()
    assert (counts[:, ~labels].sum(axis=1) == 20).all()
    assert (made.unit, made.num_units, made.without_a_class) == ("image", 30, 0)
    assert made.describe()["stratified_by_class"]
    # Each image is drawn once on average, and as often as a binomial says.
    assert counts.mean() == 1
    expected = stats.binom(20, 1 / 20).pmf(0)
    assert (counts[:, ~labels] == 0).mean() == pytest.approx(expected, abs=0.02)


def test_groups_are_drawn_whole():
    rng = np.random.default_rng(0)
    groups = rng.choice([f"video{i}" for i in range(12)], 60)
    counts, made = counts_of(rng.integers(0, 2, 60), groups)
    names, first = np.unique(groups, return_index=True)
    for name, index in zip(names, first, strict=True):
        assert (counts[:, groups == name] == counts[:, [index]]).all()
    assert (counts[:, first].sum(axis=1) == len(names)).all()
    assert (made.unit, made.num_units) == ("group", len(names))
    assert not made.describe()["stratified_by_class"]


def test_resamples_without_a_class_are_left_out_and_counted(monkeypatch):
    """Of 3 groups, one of which is real: none of it is drawn with (2 / 3)^3."""
    monkeypatch.setattr(intervals, "_BLOCK", 6000)
    labels = np.array([0, 0, 1, 1, 1, 1])
    groups = ["a", "a", "b", "b", "c", "c"]
    ranks = intervals.Ranks(labels, np.array([0.5, 0.1, 0.2, 0.9, 0.3, 0.6]))
    made = intervals.bootstrap(labels, ranks, groups, resamples=4000)
    # And only of it with 1 / 27.
    expected = 4000 * ((2 / 3) ** 3 + 1 / 27)
    assert made.without_a_class == pytest.approx(expected, rel=0.1)
    for name in intervals.RANK_FIGURES:
        missing = np.isnan(made.values[name]).sum()
        assert missing == made.without_a_class
        low, high = made.interval(name)
        assert 0 <= low <= high <= 1


def test_an_interval_of_nothing_is_none():
    made = intervals.bootstrap([0, 1, 1], lambda c: {"a": np.full(len(c), np.nan)})
    assert made.interval("a") is None


def test_one_class_is_a_user_error():
    with pytest.raises(UserError, match="3 real and 0 fake"):
        intervals.bootstrap([0, 0, 0], intervals.Ranks(np.zeros(3), np.zeros(3)))


# How wide an interval is.


def delong_deviation(labels, ranking):
    """Standard error of the AUROC by DeLong's placements."""
    real, fake = ranking[labels == 0], ranking[labels == 1]
    below = (fake[:, None] > real) + 0.5 * (fake[:, None] == real)
    return math.sqrt(
        below.mean(axis=1).var(ddof=1) / fake.size
        + below.mean(axis=0).var(ddof=1) / real.size
    )


@pytest.mark.parametrize("separation", [0.0, 1.0, 2.0])
def test_width_is_that_of_delong(separation):
    labels, ranking = sample(600, separation, fakes=0.4)
    low, high = auc_interval(labels, ranking)
    expected = 2 * stats.norm.ppf(0.975) * delong_deviation(labels, ranking)
    assert high - low == pytest.approx(expected, rel=0.08)


def test_coverage():
    """The interval holds the true AUROC in 95 % of samples."""
    separation, samples = 1.0, 300
    true = stats.norm.cdf(separation / math.sqrt(2))
    held = 0
    for seed in range(samples):
        low, high = auc_interval(*sample(160, separation, seed), resamples=300)
        held += low <= true <= high
    # 3 standard deviations of a binomial share, and some bias of the percentiles.
    assert 0.90 < held / samples < 0.99


def test_coverage_of_correlated_images_needs_groups():
    """Ten frames of a video are hardly more evidence than one."""
    rng = np.random.default_rng(0)
    separation, samples = 1.0, 150
    labels = np.repeat(np.arange(40) % 2, 10)
    groups = np.repeat(np.arange(40), 10).astype(str)
    # Variance 1 in all, 0.8 of it shared by the frames of a video.
    true = stats.norm.cdf(separation / math.sqrt(2))
    held = {"images": 0, "groups": 0}
    for _ in range(samples):
        shared = np.repeat(rng.normal(size=40), 10) * math.sqrt(0.8)
        ranking = shared + rng.normal(size=400) * math.sqrt(0.2) + separation * labels
        for name, by in (("images", None), ("groups", groups)):
            low, high = auc_interval(labels, ranking, by, resamples=200)
            held[name] += low <= true <= high
    assert held["groups"] / samples > 0.88
    assert held["images"] / samples < 0.7


def test_groups_widen_the_interval_by_the_design_effect():
    labels, ranking = sample(300)
    # Five copies of each image in one group: as much evidence as before.
    low, high = auc_interval(labels, ranking)
    five = [np.repeat(values, 5) for values in (labels, ranking, np.arange(300))]
    copied = auc_interval(five[0], five[1], five[2].astype(str))
    naive = auc_interval(five[0], five[1])
    assert copied[1] - copied[0] == pytest.approx(high - low, rel=0.15)
    assert (naive[1] - naive[0]) * math.sqrt(5) == pytest.approx(high - low, rel=0.15)


# What must not matter.


def test_monotone_scores_have_the_same_interval():
    labels, ranking = sample(120)
    expected = auc_interval(labels, ranking)
    for other in (np.exp(ranking), 3 * ranking - 7, stats.rankdata(ranking)):
        assert auc_interval(labels, other) == expected


def test_the_same_seed_gives_the_same_interval():
    labels, ranking = sample(80)
    groups = [str(i // 2) for i in range(80)]
    for by in (None, groups):
        first = auc_interval(labels, ranking, by, seed=3)
        assert auc_interval(labels, ranking, by, seed=3) == first
        assert auc_interval(labels, ranking, by, seed=4) != first


# Two detectors.


def test_paired_difference():
    labels, ranking = sample(400, 1.5)
    noise = np.random.default_rng(1).normal(size=400)
    worse = ranking + 0.3 * noise
    found = intervals.paired_bootstrap(labels, logits_of(ranking), logits_of(worse))
    values = [
        metrics.binary_metrics(labels, logits_of(r))["auc"] for r in (ranking, worse)
    ]
    assert (found["a"], found["b"]) == tuple(values)
    assert found["difference"] == values[0] - values[1]
    assert found["bootstrap"]["seed"] == 0
    assert json.loads(json.dumps(found)) == found
    low, high = found["interval"]
    assert low < found["difference"] < high
    # Placements of both, whose covariance makes the difference more certain.
    deviation = math.hypot(*(delong_deviation(labels, r) for r in (ranking, worse)))
    assert high - low < 0.7 * 2 * 1.96 * deviation
    assert high - low == pytest.approx(
        2 * 1.96 * paired_deviation(labels, ranking, worse), rel=0.08
    )


def paired_deviation(labels, first, second):
    """Standard error of a difference of AUROCs by DeLong's placements."""

    def placements(ranking):
        real, fake = ranking[labels == 0], ranking[labels == 1]
        above = fake[:, None] > real
        return above.mean(axis=1), above.mean(axis=0)

    pairs = zip(placements(first), placements(second), strict=True)
    return math.sqrt(sum((a - b).var(ddof=1) / a.size for a, b in pairs))


@pytest.mark.parametrize("metric", ["accuracy", *intervals.RANK_FIGURES])
def test_a_detector_does_not_differ_from_itself(metric):
    labels, ranking = sample(60)
    logits = logits_of(ranking)
    groups = [str(i // 2) for i in range(60)]
    found = intervals.paired_bootstrap(labels, logits, logits, groups, metric)
    assert found["difference"] == 0 and found["interval"] == [0, 0]
    assert found["a"] == metrics.binary_metrics(labels, logits)[metric]
    assert found["bootstrap"]["unit"] == "group"
    swapped = intervals.paired_bootstrap(labels, logits, -logits, groups, metric)
    back = intervals.paired_bootstrap(labels, -logits, logits, groups, metric)
    assert swapped["interval"] == pytest.approx([-v for v in back["interval"][::-1]])


def test_seeds_are_averaged_in_every_resample():
    """Three seeds are surer of it than one; the same one thrice is not."""
    labels, ranking = sample(400, 1.5)
    rng = np.random.default_rng(2)
    first, second = (ranking + rng.normal(scale=s, size=(3, 400)) for s in (0.3, 0.8))
    stacked = [np.stack([logits_of(r) for r in found]) for found in (first, second)]
    found = intervals.paired_bootstrap(labels, *stacked)
    single = [
        intervals.paired_bootstrap(labels, a, b) for a, b in zip(*stacked, strict=True)
    ]
    for name in ("a", "b", "difference"):
        mean = np.mean([one[name] for one in single])
        assert found[name] == pytest.approx(mean, abs=1e-12)
    low, high = found["interval"]
    widths = [one["interval"][1] - one["interval"][0] for one in single]
    assert high - low < min(widths)
    thrice = [np.repeat(logits[:1], 3, axis=0) for logits in stacked]
    repeated = intervals.paired_bootstrap(labels, *thrice)
    assert repeated["interval"] == pytest.approx(single[0]["interval"], abs=1e-12)


def test_a_metric_that_is_none():
    with pytest.raises(ValueError, match="Metric must be"):
        intervals.paired_bootstrap([0, 1], np.eye(2), np.eye(2), metric="loss")
