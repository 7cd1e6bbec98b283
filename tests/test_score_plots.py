"""What the figures of a scored split draw, read back from the SVG."""

import itertools
import re

import numpy as np
import pytest
from scipy import special, stats

from fdftnet_jax import errors
from fdftnet_jax.evaluation import metrics
from fdftnet_jax.reporting import plots, score_plots

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
RANKING = np.array([-3.0, -2.0, -1.0, 1.0, -1.5, 0.5, 2.0, 3.0, 4.0, 5.0])


def curve(svg, colour):
    """The points of the longest line of a colour, in units of the figure."""
    drawn = re.findall(rf'd="([^"]*)"[^>]*stroke: {colour.lower()}', svg)
    return np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", max(drawn, key=len)), float)


def test_det_curve_on_normal_deviates():
    figure = score_plots.det_figure(LABELS, RANKING, 0.0)
    svg = plots.svg(figure)
    assert "real images called fake" in svg and "fake images called real" in svg
    line, dot, *_ = figure.axes[0].lines
    # By hand: the rates at every threshold; a rate of 0 stands at half an image.
    half = np.array([0.5 / 4, 0.5 / 6])

    def place(threshold):
        called = threshold <= RANKING
        rates = called[LABELS == 0].mean(), 1 - called[LABELS == 1].mean()
        return stats.norm.ppf(np.clip(rates, half, 1 - half))

    expected = {tuple(place(t).round(9)) for t in [*RANKING, np.inf]}
    found = {tuple(point) for point in line.get_xydata().round(9)}
    # Points within a straight piece are left out.
    assert found <= expected and len(found) >= 5
    for at in (place(-np.inf), place(np.inf)):
        assert tuple(at.round(9)) in found
    np.testing.assert_allclose(dot.get_xydata()[0], place(0.0))


@pytest.mark.parametrize("separated", [True, False])
def test_det_of_detectors_at_the_ends(separated):
    labels = np.repeat([0, 1], 5)
    ranking = labels * 2.0 - 1 if separated else np.zeros(10)
    assert "<svg" in plots.svg(score_plots.det_figure(labels, ranking, 0.0))


def test_histograms_are_shares_of_a_class_and_parted_by_the_threshold(monkeypatch):
    drawn = []
    stairs = score_plots.Axes.stairs

    def kept(axes, values, edges, **style):
        drawn.append((values, edges))
        return stairs(axes, values, edges, **style)

    monkeypatch.setattr(score_plots.Axes, "stairs", kept)
    svg = plots.svg(score_plots.histogram_figure(LABELS, RANKING, 0.5))
    for label, (values, edges) in enumerate(drawn):
        assert values.sum() == pytest.approx(1)
        assert np.abs(edges - 0.5).min() < 1e-9
        called = values[edges[:-1] > 0.5 - 1e-9].sum()
        assert called == pytest.approx(np.mean((RANKING >= 0.5)[label == LABELS]))
    # 95 % has log odds of 2.9, 1 % of -4.6: the axis goes from -3 to 5.
    for text, shown in (("10%", True), ("90%", True), ("99%", True), ("1%", False)):
        assert (f">{text}</text>" in svg) == shown


@pytest.mark.parametrize("values", [np.zeros(10), 40 * (LABELS - 0.5), RANKING / 50])
def test_histograms_of_any_range(values):
    svg = plots.svg(score_plots.histogram_figure(LABELS, values, 0.0))
    assert ">50%</text>" in svg


def test_reliability_has_a_point_for_each_bin():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    log_odds = rng.normal(size=300) + labels
    series = {
        name: metrics.calibration_bins(labels, special.expit(values))
        for name, values in (("raw", 3 * log_odds), ("calibrated", log_odds))
    }
    svg = plots.svg(score_plots.reliability_figure(series))
    bins = series["calibrated"]
    points = curve(svg, plots.PALETTE[0])
    assert len(points) == len(bins.count) == 15 and bins.count.sum() == 300
    for values, found in (
        (bins.predicted, points[:, 0]),
        (bins.observed, -points.T[1]),
    ):
        assert np.corrcoef(values, found)[0, 1] > 0.9999
    with pytest.raises(ValueError, match="empty"):
        score_plots.reliability_figure({})


def test_bins_weigh_images_and_have_equally_many():
    rng = np.random.default_rng(1)
    labels, probability = rng.integers(0, 2, 100), rng.uniform(size=100)
    weights = rng.uniform(0.5, 2, 100)
    found = metrics.calibration_bins(labels, probability, weights, bins=4)
    order = np.argsort(probability).reshape(4, 25)
    for b, chosen in enumerate(order):
        kept = weights[chosen]
        assert found.count[b] == 25
        assert found.weight[b] == pytest.approx(kept.sum())
        expected = np.average(labels[chosen], weights=kept)
        assert found.observed[b] == pytest.approx(expected)
        expected = np.average(probability[chosen], weights=kept)
        assert found.predicted[b] == pytest.approx(expected)


@pytest.mark.parametrize("draw", [score_plots.det_figure, score_plots.histogram_figure])
def test_one_class_is_a_user_error(draw):
    with pytest.raises(errors.UserError, match="2 real and 0 fake"):
        draw([0, 0], [0.1, 0.2], 0.0)


def test_many_images_make_a_small_file():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 100_000)
    ranking = rng.normal(size=labels.size) + labels
    for figure in (
        score_plots.det_figure(labels, ranking, 0.0),
        plots.roc_figure({"all": (labels, ranking)}, {"all": 0.0}),
        score_plots.histogram_figure(labels, ranking, 0.0),
    ):
        assert len(plots.svg(figure)) < 300_000


@pytest.mark.parametrize(
    ("share", "filled"), [(0.0, 0), (0.002, 1), (0.93, 93), (0.998, 99), (1.0, 100)]
)
def test_squares_of_a_verdict(share, filled):
    figure = score_plots.verdict_figure(share, 1 - share)
    for axes, number in zip(figure.axes, (filled, 100 - filled), strict=True):
        (squares,) = axes.collections
        white = (squares.get_facecolor()[:, :3] == 1).all(axis=1)
        assert (~white).sum() == number and len(squares.get_offsets()) == 100


@pytest.mark.parametrize("spread", [0.2, 2, 5, 9, 14])
def test_names_on_the_axis_of_probabilities_do_not_collide(spread):
    values = np.linspace(-spread, spread, len(LABELS))
    (axes,) = score_plots.histogram_figure(LABELS, values, 0.0).axes
    axes.figure.draw_without_rendering()
    boxes = sorted(
        (name.get_window_extent() for name in axes.get_xticklabels()),
        key=lambda box: box.x0,
    )
    assert len(boxes) >= 3
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0
