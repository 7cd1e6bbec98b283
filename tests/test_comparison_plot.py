"""The figure of a comparison, by what is drawn on its axes."""

import pytest
from matplotlib.colors import same_color

from fdftnet_jax.reporting import comparison_plot, plots
from fdftnet_jax.reporting.comparison_plot import Curve, Point

POINTS = [
    Point("before", False, [0.99], [0.5]),
    Point("tuned", True, [0.9, 0.7], [0.6, 0.9]),
    Point("tuned", False, [0.25], [0.875]),
]


def test_points_are_means_over_seeds():
    figure = comparison_plot.figure(POINTS)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    named = {
        "before": (0.99, 0.5),
        "tuned, with replay": (0.8, 0.75),
        "tuned": (0.25, 0.875),
    }
    for name, place in named.items():
        assert lines[name].get_xydata().tolist() == [pytest.approx(place)]
    filled, hollow = lines["tuned, with replay"], lines["tuned"]
    assert filled.get_marker() == hollow.get_marker() != lines["before"].get_marker()
    assert same_color(filled.get_color(), hollow.get_color())
    assert same_color(filled.get_markerfacecolor(), plots.PALETTE[1])
    assert same_color(hollow.get_markerfacecolor(), "white")
    (seeds,) = (line for line in axes.lines if line.get_marker() == ".")
    assert seeds.get_xydata().tolist() == [[0.9, 0.6], [0.7, 0.9]]
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [*named, "chance"]


def test_in_words():
    assert "tuned, with replay: 0.750 new, 0.800 old;" in comparison_plot.in_words(
        POINTS
    )


@pytest.mark.parametrize("points", [[], [Point("a", True, [], [])]])
def test_nothing_to_draw(points):
    with pytest.raises(ValueError, match="must not be empty"):
        comparison_plot.figure(points)


def _scores(*values, half=0.05):
    return [
        {"figures": {"auc": {"value": v, "interval": [v - half, v + half]}}}
        for v in values
    ]


CURVES = [
    Curve("probe", False, {200: _scores(0.8), 10: _scores(0.6)}),
    Curve("tuned", True, {10: _scores(0.5, 0.6, 0.7), 200: _scores(0.9, 0.9, 0.9)}),
]


def test_curves_are_means_with_intervals():
    figure = comparison_plot.curves(CURVES)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    drawn = {bar.get_label(): bar for bar in axes.containers}
    for name, means, halves in (
        ("probe", (0.6, 0.8), (0.05, 0.05)),
        # Student's, of three seeds: t is 4.303, their deviation 0.1 and 0.
        ("tuned, with replay", (0.6, 0.9), (4.303 * 0.1 / 3**0.5, 0)),
    ):
        line, _, (bars,) = drawn[name].lines
        x, y = line.get_xydata().T
        assert x == pytest.approx([10, 200], rel=0.05)
        assert y == pytest.approx(means)
        lengths = [high - low for (_, low), (_, high) in bars.get_segments()]
        assert lengths == pytest.approx([2 * half for half in halves], abs=1e-3)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "200"]


def test_curves_in_words():
    told = comparison_plot.curves_in_words(CURVES)
    assert "probe: 0.600 with 10, 0.800 with 200; tuned, with replay: 0.600" in told


@pytest.mark.parametrize("lines", [[], [Curve("a", False, {10: []})]])
def test_no_curves_to_draw(lines):
    with pytest.raises(ValueError, match="must not be empty"):
        comparison_plot.curves(lines)
