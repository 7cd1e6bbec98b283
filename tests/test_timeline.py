"""The figure of a video: its lines, its words, and odd names."""

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image
from scipy import special

from fdftnet_jax.errors import UserError
from fdftnet_jax.prediction import timeline
from fdftnet_jax.prediction.video import Track, VideoResult
from fdftnet_jax.reporting import plots

STEP = 0.5


def track(frames, logits):
    frames = np.array(frames)
    boxes = np.zeros((len(frames), 4), int)
    return Track(frames, frames * STEP, boxes, np.array(logits, float))


def result(*tracks, frames=20, reason=""):
    deciding = 0 if tracks else None
    seconds = max(frames - 1, 0) * STEP
    return VideoResult(frames, seconds, tracks, deciding, reason, ())


PEOPLE = result(
    track(range(12), np.linspace(-2, 1, 12)),
    track([3, 4, 5, 9, 10], [1, 2, 3, 2, 1]),
    track([1, 2], [5, 5]),
)


@pytest.fixture
def figure(monkeypatch):
    """Draws, and returns the figure's axes and the lines of its legend."""

    def draw(*arguments, **options):
        kept = []
        monkeypatch.setattr(plots, "save", lambda figure, path: kept.append(figure))
        timeline.draw("a.svg", *arguments, **options)
        [found] = kept
        [axes], [legend] = found.axes, found.legends
        return axes, [text.get_text() for text in legend.get_texts()]

    return draw


def unwrapped(legend):
    return [" ".join(text.split()) for text in legend]


def lines(axes):
    """Label -> times and values, without the gaps, and where the gaps are."""
    found = {}
    for line in axes.get_lines():
        x, y = (np.asarray(v, float) for v in line.get_data())
        known = np.isfinite(x)
        found[line.get_label()] = x[known], y[known], np.flatnonzero(~known).tolist()
    return found


def test_each_face_is_a_line_of_its_scores(figure):
    axes, legend = figure(PEOPLE, 0.4, name="a/b.mp4")
    # Of 12 logits from -2 to 1 at equal steps: 3 / 11 sqrt(13).
    first = f"face 0: {special.expit(-0.5):.2f}, 12 frames, deviation 0.98"
    # 9 / 5 log odds; the last looks most fake, but is not seen long enough to count.
    second = f"face 1: {special.expit(1.8):.2f}, 5 frames, deviation 0.84"
    third = "face 2: 0.99, 2 frames, deviation 0.00, too few"
    assert unwrapped(legend) == [second, first, third, "threshold: 0.40"]
    drawn = lines(axes)
    for i, label in enumerate((first, second, third)):
        x, y, gaps = drawn[label]
        np.testing.assert_allclose(x, PEOPLE.tracks[i].times)
        np.testing.assert_allclose(y, special.expit(PEOPLE.tracks[i].logits))
        assert gaps == ([3] if i == 1 else [])
    [threshold] = [y for x, y, _ in drawn.values() if len(set(y)) == 1 and y[0] == 0.4]
    assert threshold.size
    assert axes.get_title(loc="left") == "a/b.mp4"
    assert axes.get_ylabel() == "score, P(fake)"


def test_both_thresholds_are_drawn(figure):
    axes, legend = figure(PEOPLE, 0.7, lower=0.2)
    assert legend[-2:] == ["fake from 0.70", "real below 0.20"]
    levels = {y[0] for _, y, _ in lines(axes).values() if len(set(y)) == 1}
    assert {0.7, 0.2} <= levels
    _, legend = figure(PEOPLE, 0.7, lower=0.7)
    assert legend[-1] == "threshold: 0.70"


def test_calibrated_probabilities(figure):
    axes, legend = figure(PEOPLE, 0.7, probability=lambda z: special.expit(z / 2 + 1))
    assert axes.get_ylabel() == "calibrated P(fake)"
    assert legend[0].startswith(f"face 1: {special.expit(1.9):.2f}, ")
    _, y, _ = lines(axes)[unwrapped(legend)[0]]
    np.testing.assert_allclose(y, special.expit(PEOPLE.tracks[1].logits / 2 + 1))


def test_many_faces_share_a_grey(figure):
    axes, legend = figure(result(*[track(range(4), [i] * 4) for i in range(9)]), 0.5)
    assert [text.partition(":")[0] for text in legend] == [
        *(f"face {i}" for i in (8, 7, 6, 5, 4)),
        "4 more faces",
        "threshold",
    ]
    colours = [colors.to_hex(line.get_color()) for line in axes.get_lines()]
    assert colours.count(plots.GREY) == 4 and len(set(colours)) == 7


def test_without_faces_it_says_why(figure):
    axes, legend = figure(result(frames=0, reason="unreadable video: empty"), 0.5)
    assert [text.get_text() for text in axes.texts] == ["unreadable video: empty"]
    assert legend == ["threshold: 0.50"]


@pytest.mark.parametrize("name", ["$x$.mp4", "人 \n\udcff.mp4", "a" * 300 + ".mp4"])
@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_any_name_is_drawn(name, suffix, tmp_path):
    """Without a warning of a character that the font lacks, which is an error here."""
    path = tmp_path / f"new/a{suffix}"
    timeline.draw(path, PEOPLE, 0.5, name=name)
    if suffix == ".svg":
        text = path.read_text()
        assert "face 1: 0.86, 5 frames" in text and ".mp4" in text
    else:
        with Image.open(path) as image:
            assert 600 < image.width < 1000


def test_another_suffix(tmp_path):
    with pytest.raises(UserError, match=r"written as \.svg or \.png"):
        timeline.draw(tmp_path / "a.gif", PEOPLE, 0.5)
