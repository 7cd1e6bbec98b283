"""The figure of an ablation, by what is drawn on its axes."""

import numpy as np
import pytest
from matplotlib.colors import same_color
from scipy import stats

from fdftnet_jax import errors
from fdftnet_jax.reporting import ablation_plot, plots


def scores(accuracy, auc=0.75, interval=None):
    """As an evaluation holds them; `interval` is that of the accuracy."""
    values = {"accuracy": (accuracy, interval), "auc": (auc, None)}
    figures = {name: {"value": v, "interval": i} for name, (v, i) in values.items()}
    return {"figures": figures, "num_examples": 40}


@pytest.fixture
def drawn(monkeypatch):
    """Draws without a file, and returns the figure."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))

    def draw(values, before=(), **options):
        ablation_plot.draw("figure.svg", "label", values, before, **options)
        figures[-1].draw_without_rendering()
        return figures[-1]

    return draw


def bars(axes):
    """The means, and the ends of the bars that there are: [n, 2]."""
    [container] = axes.containers
    line, _, [collection] = container
    segments = [s[:, 1] for s in collection.get_segments() if len(s)]
    return line.get_xydata(), np.array(segments)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_means_and_intervals(drawn):
    by_seed = {"1": [0.5, 0.75, 0.625], "10": [0.75, 0.875], "100": [1.0]}
    values = {name: [scores(v) for v in found] for name, found in by_seed.items()}
    figure = drawn(values, [scores(0.25), scores(0.5)], log_axis=True)
    above, below = figure.axes
    points, ends = bars(above)
    np.testing.assert_allclose(points, [(1, 0.625), (10, 0.8125), (100, 1)])
    for found, name in zip(ends, ("1", "10"), strict=False):
        expected = stats.ttest_1samp(by_seed[name], 0).confidence_interval(0.95)
        np.testing.assert_allclose(found, expected)
    assert np.isnan(ends[2:]).all()
    np.testing.assert_allclose(bars(below)[0][:, 1], 0.75)
    assert below.get_xscale() == "log"
    assert [t.get_text() for t in below.get_xticklabels()] == ["1", "10", "100"]
    # An interval of two values reaches far beyond 1.
    assert above.get_ylim()[1] <= 1.02
    dashed = above.lines[0]
    np.testing.assert_allclose(dashed.get_ydata(), 0.375)
    dots = [line for line in above.lines if line.get_marker() == "."]
    assert [list(line.get_ydata()) for line in dots] == [by_seed["1"], by_seed["10"]]
    colours = {line.get_color() for line in (dots[0], above.containers[0][0])}
    assert len(colours) == 2
    assert all(any(same_color(c, p) for p in plots.PALETTE) for c in colours)
    assert legend(figure) == [
        "FDFtNet, 95 % interval over the seeds",
        "single seeds",
        "before fine-tuning, mean",
    ]


def test_names_stand_side_by_side_and_are_not_joined(drawn):
    figure = drawn({"off": [scores(0.5)], "3 / 5": [], "3 / 10": [scores(0.75)]})
    line = figure.axes[0].containers[0][0]
    np.testing.assert_allclose(line.get_xydata(), [(0, 0.5), (2, 0.75)])
    assert line.get_linestyle() == "None"
    labels = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    assert labels == ["off", "3 / 5", "3 / 10"]
    assert legend(figure) == ["FDFtNet, 95 % interval over test images"]


def test_a_single_seed_has_the_interval_over_test_images(drawn):
    figure = drawn({"1": [scores(0.5, interval=[0.375, 0.5625])], "2": [scores(0.75)]})
    points, ends = bars(figure.axes[0])
    np.testing.assert_allclose(points, [(1, 0.5), (2, 0.75)])
    np.testing.assert_allclose(ends[0], (0.375, 0.5625))
    assert np.isnan(ends[1:]).all()


def test_numbers_are_joined_on_a_linear_axis(drawn):
    figure = drawn({"0": [scores(0.5)], "4": [scores(0.75)]})
    assert figure.axes[1].get_xscale() == "linear"
    line = figure.axes[0].containers[0][0]
    np.testing.assert_allclose(line.get_xdata(), [0, 4])
    assert line.get_linestyle() == "-"


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_files_of_a_grid_that_has_only_begun(tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    ablation_plot.draw(path, "label", {"1": [], "2": []}, [])
    assert path.stat().st_size > 1000


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="must not be empty"):
        ablation_plot.draw(tmp_path / "figure.svg", "label", {}, [])
    with pytest.raises(errors.UserError, match=r"\.svg or \.png"):
        ablation_plot.draw(tmp_path / "figure.jpg", "label", {"1": []}, [])
