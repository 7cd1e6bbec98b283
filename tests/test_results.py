import csv
import dataclasses
import json
import os
import re

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import brier_score_loss, roc_auc_score

from experiments import evaluate
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import calibration, metrics, results, scoring, split_metrics
from fdftnet_jax.run import Run


def split(number=240, per_group=1, seed=0, own=True, directory="/data/photos", fakes=2):
    """A scored split: one fake in `fakes`, of two generators, in groups."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(number):
        video = index // per_group
        label = int(video % fakes == 0)
        generator = ("swap", "gan")[video // fakes % 2] if label else ""
        # A group holds the real and the fake pictures of one name.
        name = {"group": f"id{video // 2}", "generator": generator, "label": label}
        records.append({"path": f"{label}/{index}.png", **name})
    labels = np.array([record["label"] for record in records])
    ranking = 2 * rng.normal(size=number) + 4 * labels - 2
    offset = rng.normal(size=number)
    logits = np.stack([offset, offset + ranking], axis=1)
    return scoring.Scores("photos", directory, "test", 7, logits, records, own)


def calibrated(prior=0.5, training_prior=0.5):
    validation = split(seed=1)
    options = calibration.Options(rule="fpr", fpr=0.05, prior=prior)
    return calibration.fit(
        validation.labels, validation.logits, options, training_prior=training_prior
    )


def report(scores, made=None, **options):
    found = results.report(scores, made, **({"resamples": 200} | options))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_figures_at_the_threshold():
    scores, made = split(), calibrated()
    found = report(scores, made)
    ranking = scores.logits[:, 1] - scores.logits[:, 0]
    called, labels = ranking >= made.threshold_logit, scores.labels == 1
    values = {name: figure["value"] for name, figure in found["figures"].items()}
    assert values["accuracy_at_threshold"] == pytest.approx(np.mean(called == labels))
    assert values["tpr_at_threshold"] == pytest.approx(np.mean(called[labels]))
    assert values["fpr_at_threshold"] == pytest.approx(np.mean(called[~labels]))
    assert values["accuracy"] == pytest.approx(np.mean((ranking >= 0) == labels))
    assert found["verdicts"] == metrics.confusion(labels, called)
    assert found["confusion"] == metrics.confusion(labels, ranking >= 0)
    for name in ("auc", "average_precision", "eer", "tpr_at_fpr_0.01", "loss"):
        expected = metrics.binary_metrics(scores.labels, scores.logits)[name]
        assert values[name] == pytest.approx(expected)
    assert found["threshold"]["source"] == "calibration"
    assert found["threshold"]["logit"] == made.threshold_logit
    assert found["calibration"] == made.to_dict()
    counts = [found[f"num_{name}"] for name in ("examples", "real", "fake", "groups")]
    assert counts == [240, 120, 120, 120]
    for name, figure in found["figures"].items():
        if name.startswith("ece"):
            assert figure["interval"] is None
        else:
            low, high = figure["interval"]
            assert low <= figure["value"] <= high, name


def banded(prior=0.5, max_wrong=0.03):
    validation = split(600, seed=1)
    options = calibration.Options(rule="band", max_wrong=max_wrong, prior=prior)
    return calibration.fit(
        validation.labels, validation.logits, options, training_prior=0.5
    )


@pytest.mark.parametrize("prior", [0.5, 0.2])
def test_a_band_has_the_share_decided_and_the_errors_among_them(prior):
    scores, made = split(), banded(prior)
    found = report(scores, made)
    ranking, labels = scores.logits[:, 1] - scores.logits[:, 0], scores.labels == 1
    low, high = made.lower_logit, made.threshold_logit
    real, fake = ranking < low, ranking >= high
    assert 0 < (~real & ~fake).sum() < 200
    # As many pictures of each class: those of the prior by repetition.
    often = np.where(labels, round(10 * prior), round(10 * (1 - prior)))
    repeated = np.repeat(np.arange(240), often)
    decided = (real | fake)[repeated]
    wrong = np.where(labels, real, fake)[repeated]
    figures = found["figures"]
    assert figures["share_decided"]["value"] == pytest.approx(decided.mean())
    assert figures["wrong_of_decided"]["value"] == pytest.approx(wrong[decided].mean())
    for name in ("share_decided", "wrong_of_decided"):
        low_end, high_end = figures[name]["interval"]
        assert low_end < figures[name]["value"] < high_end
    # Of all images: an undecided one is not called what it is.
    right = np.where(labels, fake, real)
    for name, expected in (
        ("accuracy_at_threshold", right.mean()),
        ("tpr_at_threshold", fake[labels].mean()),
        ("fpr_at_threshold", fake[~labels].mean()),
    ):
        assert figures[name]["value"] == pytest.approx(expected)
    assert found["verdicts"] == {
        "true_real": real[~labels].sum(),
        "false_fake": fake[~labels].sum(),
        "undecided_real": (~real & ~fake)[~labels].sum(),
        "false_real": real[labels].sum(),
        "true_fake": fake[labels].sum(),
        "undecided_fake": (~real & ~fake)[labels].sum(),
    }
    assert found["threshold"]["lower_logit"] == low
    assert found["threshold"]["lower_probability"] == made.lower_probability


def test_the_interval_of_the_errors_among_the_decided_is_that_of_resamples():
    """Of images drawn by class, against a loop over resamples of another seed."""
    scores, made = split(), banded()
    figures = report(scores, made, resamples=2000)["figures"]
    verdicts = made.thresholds.verdicts(scores.logits[:, 1] - scores.logits[:, 0])
    names = np.where(scores.labels == 1, "fake", "real")
    rng = np.random.default_rng(5)
    shares, errors = [], []
    for _ in range(2000):
        drawn = np.concatenate(
            [
                rng.choice(of_class, of_class.size)
                for of_class in (np.flatnonzero(scores.labels == k) for k in (0, 1))
            ]
        )
        decided = drawn[verdicts[drawn] != "undecided"]
        shares.append(decided.size / drawn.size)
        errors.append(np.mean(verdicts[decided] != names[decided]))
    for name, values in (("share_decided", shares), ("wrong_of_decided", errors)):
        expected = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose(figures[name]["interval"], expected, atol=0.008)


def test_a_band_that_decides_nothing_has_no_errors_among_the_decided():
    scores = split()
    made = dataclasses.replace(banded(), lower_logit=-99.0, threshold_logit=99.0)
    found = report(scores, made)
    assert found["figures"]["share_decided"]["value"] == 0
    assert "wrong_of_decided" not in found["figures"]
    assert found["verdicts"]["undecided_real"] == 120


def test_verdicts_of_a_band_by_image_and_by_group(tmp_path):
    scores, made = split(number=300, per_group=5), banded()
    found = report(scores, made, pool=True)
    rows = split_metrics.Rows.of(scores).pooled()
    _, *paths = results.write(found, scores, made, Run(tmp_path))
    for path, ranking in zip(
        paths, (scores.logits[:, 1] - scores.logits[:, 0], rows.ranking), strict=True
    ):
        with path.open(newline="") as file:
            table = list(csv.DictReader(file))
        assert [row["verdict"] for row in table] == [
            "fake"
            if logit >= made.threshold_logit
            else "real"
            if logit < made.lower_logit
            else "undecided"
            for logit in ranking
        ]
    names = np.where(rows.labels == 1, "fake", "real")
    verdicts = np.array([row["verdict"] for row in table])
    decided = verdicts != "undecided"
    weights = np.where(
        rows.labels == 1, 0.5 / sum(rows.labels), 0.5 / sum(1 - rows.labels)
    )
    figures = found["pooled"]["figures"]
    assert figures["share_decided"]["value"] == pytest.approx(weights[decided].sum())
    assert figures["wrong_of_decided"]["value"] == pytest.approx(
        weights[decided & (verdicts != names)].sum() / weights[decided].sum()
    )


def test_probabilities_are_judged_under_their_prior():
    scores, made = split(fakes=3), calibrated(prior=0.2, training_prior=0.4)
    found = report(scores, made)["figures"]
    labels = scores.labels
    ranking = scores.logits[:, 1] - scores.logits[:, 0]
    for name, probability, share in (
        ("raw", special.expit(ranking), 0.4),
        ("calibrated", made.probability(ranking), 0.2),
    ):
        weights = np.where(
            labels == 1, share / labels.sum(), (1 - share) / sum(1 - labels)
        )
        expected = brier_score_loss(labels, probability, sample_weight=weights)
        assert found[f"brier_{name}"]["value"] == pytest.approx(expected)
        error = metrics.calibration_error(labels, probability, weights)
        assert found[f"ece_{name}"]["value"] == pytest.approx(error)


def test_without_a_calibration():
    scores = split()
    found = report(scores)
    assert found["calibration"] is None
    assert found["threshold"] == {
        "source": "score 0.5",
        "logit": 0.0,
        "probability": 0.5,
        "probability_of": "raw",
    }
    assert found["verdicts"] == found["confusion"]
    assert "brier_calibrated" not in found["figures"]
    assert "not calibrated: verdicts are at score 0.5" in found["notes"]
    expected = brier_score_loss(
        scores.labels, special.expit(scores.logits[:, 1] - scores.logits[:, 0])
    )
    assert found["figures"]["brier_raw"]["value"] == pytest.approx(expected)


def test_generators_against_all_real_images():
    scores, made = split(), calibrated()
    found = report(scores, made)["generators"]
    ranking = scores.logits[:, 1] - scores.logits[:, 0]
    assert list(found) == ["gan", "swap"]
    for name, row in found.items():
        chosen = [r["generator"] in ("", name) for r in scores.records]
        mine = np.array([r["generator"] == name for r in scores.records])
        auc = roc_auc_score(scores.labels[chosen], ranking[chosen])
        assert row["auc"]["value"] == pytest.approx(auc)
        rate = np.mean(ranking[mine] >= made.threshold_logit)
        assert row["tpr_at_threshold"]["value"] == pytest.approx(rate)
        assert row["num_fake"] == mine.sum() == 60
        assert not row["few"]
        for figure in ("auc", "tpr_at_threshold"):
            low, high = row[figure]["interval"]
            assert low < row[figure]["value"] < high
    assert report(split(40))["generators"]["gan"]["few"]


# By video.


def test_pooled_rows_are_groups_of_one_class_and_generator():
    scores = split(number=60, per_group=5)
    rows = split_metrics.Rows.of(scores).pooled()
    ranking = scores.logits[:, 1] - scores.logits[:, 0]
    keys = [(r["group"], r["label"], r["generator"]) for r in scores.records]
    assert len(set(keys)) == rows.labels.size == 12
    for index, key in enumerate(dict.fromkeys(keys)):
        mine = [k == key for k in keys]
        assert rows.ranking[index] == pytest.approx(np.mean(ranking[mine]))
        found = rows.groups[index], rows.labels[index], rows.generators[index]
        assert found == key
        assert rows.sizes[index] == sum(mine) == 5


def test_calibration_is_that_of_the_mean():
    """The mean of calibrated logits is the calibrated mean: the reason for logits."""
    made = calibrated(prior=0.1)
    rows = split_metrics.Rows.of(split(60, 5))
    each = special.logit(made.probability(rows.ranking)).reshape(-1, 5).mean(axis=1)
    found = special.logit(made.probability(rows.pooled().ranking))
    np.testing.assert_allclose(found, each)


def test_pooled_figures(tmp_path):
    scores, made = split(number=300, per_group=5), calibrated()
    found = report(scores, made, pool=True)
    pooled = found["pooled"]
    rows = split_metrics.Rows.of(scores).pooled()
    assert pooled["num_rows"] == 60 == pooled["num_real"] + pooled["num_fake"]
    expected = roc_auc_score(rows.labels, rows.ranking)
    assert pooled["figures"]["auc"]["value"] == pytest.approx(expected)
    assert pooled["figures"]["auc"]["value"] > found["figures"]["auc"]["value"]
    assert pooled["generators"].keys() == {"gan", "swap"}
    # Real and fake of one name are one group: 30 of them.
    for part in (found, pooled):
        assert part["bootstrap"]["unit"] == "group"
        assert part["bootstrap"]["num_units"] == 30
    assert report(scores, made)["pooled"] is None

    *_, path = results.write(found, scores, made, Run(tmp_path))
    assert path.name == "photos-test_groups.csv"
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 60
    for index, row in enumerate(table):
        logit = float(row["logit"])
        assert logit == pytest.approx(rows.ranking[index])
        assert row["num_images"] == "5" and row["label"] == str(rows.labels[index])
        assert float(row["calibrated"]) == pytest.approx(made.probability(logit))
        called = logit >= made.threshold_logit
        assert row["verdict"] == ("fake" if called else "real")


def test_pooling_of_single_images_is_told():
    found = report(split(per_group=1), pool=True)
    assert (
        "no group holds several images: pooled metrics are the same" in found["notes"]
    )
    auc = [part["figures"]["auc"]["value"] for part in (found, found["pooled"])]
    assert auc[0] == auc[1]


# Notes.


def test_notes():
    found = report(split())
    notes = " ".join(found["notes"])
    assert "120 real images are too few to tell a false positive rate of 0.001" in notes
    assert "rate of 0.01" not in notes
    found = report(split(40, per_group=10))
    notes = " ".join(found["notes"])
    assert "rate of 0.01 from 0: tpr_at_fpr_0.01 allows none" in notes
    assert "only 2 groups: the intervals are too narrow" in notes
    assert "validation chose" not in notes


def test_a_faultless_detector_is_not_certain():
    scores = split()
    perfect = np.stack([-9.0 * scores.labels, 9.0 * scores.labels - 4], axis=1)
    found = report(scoring.Scores("p", "", "validation", 1, perfect, scores.records))
    [note] = [note for note in found["notes"] if "same in every resample" in note]
    assert "auc, average_precision" in note and "error rate below about 0.025" in note
    assert any("validation chose the checkpoint" in note for note in found["notes"])


def test_resamples_without_a_class_are_told():
    scores = split(8, per_group=2)
    records = [r | {"group": f"{r['label']}{r['group']}"} for r in scores.records]
    scores = scoring.Scores("p", "", "test", 1, scores.logits, records)
    found = report(scores)
    lacking = found["bootstrap"]["without_a_class"]
    assert lacking > 0
    assert f"{lacking} of 200 resamples lack a class" in " ".join(found["notes"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite(value):
    scores = split()
    scores.logits[3, 1] = value
    with pytest.raises(UserError, match="NaN or infinity for 1 of 240"):
        report(scores)


def test_the_same_report_again():
    scores, made = split(), calibrated()
    first = report(scores, made)
    assert report(scores, made) == first
    assert report(scores, made, seed=1)["figures"] != first["figures"]


# Files.


def test_folders_of_one_name_do_not_meet(tmp_path):
    paths = set()
    for own, directory in (
        (True, "/a/photos"),
        (False, "/b/photos"),
        (False, "/c/photos"),
    ):
        scores = split(own=own, directory=directory)
        found = results.write(report(scores), scores, None, Run(tmp_path))
        assert json.loads(found[0].read_text())["data_directory"] == directory
        paths |= set(found)
    assert len(paths) == 6 == len(list((tmp_path / "evaluation").iterdir()))
    names = sorted(path.name for path in paths if path.suffix == ".json")
    assert names[-1] == "photos-test.json"
    assert all(re.fullmatch(r"photos-[0-9a-f]{8}-test\.json", n) for n in names[:-1])


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("fdftnet_jax.files.write_atomic", refuse)
    scores = split()
    with pytest.raises(UserError, match="cannot write the evaluation to"):
        results.write(report(scores), scores, None, Run(tmp_path))


# On a terminal.


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("made", [None, calibrated(prior=0.01), banded()])
def test_summary(made, pool):
    scores = split(600, per_group=5)
    for record in scores.records:
        record["generator"] = {"gan": "a generator " * 9}.get(
            record["generator"], record["generator"]
        )
    found = report(scores, made, pool=pool)
    text = evaluate.summary(found, "some rule" if made else "")
    lines = text.splitlines()
    assert max(map(len, lines)) < 100
    assert lines[0].startswith("photos, test split: 600 images (300 real, 300 fake)")
    auc = found["figures"]["auc"]
    low, high = auc["interval"]
    assert f"  {auc['value']:.4f} [{low:.4f}, {high:.4f}]" in text
    assert text.count("AUROC   ") >= 2 + 2 * pool
    assert ("by group: 120 (60 real" in text) == pool
    counts = found["verdicts"]
    assert f"real called fake {counts['false_fake']} of 300, " in text
    decided = found["figures"].get("share_decided")
    assert ("undecided, too close to call: " in text) == (decided is not None)
    if decided:
        low, high = decided["interval"]
        assert f"{decided['value']:.4f} [{low:.4f}, {high:.4f}]" in text
        assert f"close to call: {counts['undecided_real']} of 300 real, " in text
        assert f"real below P(fake) {made.lower_probability:.4f}" in " ".join(
            text.split()
        )
    assert ("some rule" in text) == (made is not None)
    assert ("not calibrated" in text) == (made is None)
    for note in found["notes"]:
        assert note[:40] in text
