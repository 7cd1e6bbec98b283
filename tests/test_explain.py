"""Pictures of what a detector looked at."""

import jax
import numpy as np
import pytest
import small_runs
from PIL import Image

from fdftnet_jax.data.preprocess import Preprocessing, scale
from fdftnet_jax.models import explanation, registry
from fdftnet_jax.prediction import explain
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.reporting import plots

SIZE = small_runs.SIZE
ROW = Row("a", "image", width=40, height=40, score=0.25, verdict="real")


class Detector:
    """A network of random weights."""

    def __init__(self, kind="fdftnet", gammas=(0.5,), **preprocessing):
        model = small_runs.model_config(kind) | {"num_stages": len(gammas)}
        self.card = {"model": model, "threshold": {"probability": 0.4}}
        self.preprocessing = Preprocessing(size=SIZE, **preprocessing)
        built = registry.build(model)
        images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)
        shapes = jax.eval_shape(
            lambda images: built.init(jax.random.key(0), images, train=False), images
        )
        rng = np.random.default_rng(0)
        # Above 0, as variances are.
        self.variables = jax.tree.map(
            lambda leaf: rng.uniform(0.01, 0.4, leaf.shape).astype(np.float32), shapes
        )
        self.model = lambda: built
        if kind == "fdftnet":
            # Everything looks fake, more or less.
            self.variables["params"]["classifier"]["kernel"][:, 1] += 1
            for m, gamma in enumerate(gammas, 1):
                transformer = self.variables["params"]["fine_tune_transformer"]
                transformer[f"attention{m}"]["gamma"] = np.float32(gamma)

    def logits(self, views):
        return views.mean((1, 2, 3))


def face(height=48, width=48):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def two_stages():
    return Detector(gammas=(0.5, -0.25))


@pytest.fixture
def figure(monkeypatch):
    """Writes, and returns the panels' titles and pixels, and the lines of text."""

    def write(detector, image=None, row=ROW, name="a/b.jpg", **options):
        kept = []
        monkeypatch.setattr(plots, "save", lambda figure, path: kept.append(figure))
        image = face() if image is None else image
        explain.draw("out.png", name, image, detector, row, **options)
        [found] = kept
        panels = {
            axes.get_title(loc="left"): np.asarray(axes.get_images()[0].get_array())
            for axes in found.axes
        }
        lines = [line for text in found.texts for line in text.get_text().split("\n")]
        return panels, lines

    return write


def test_an_fdftnet_has_all_maps_side_by_side(two_stages, figure):
    panels, lines = figure(two_stages)
    assert list(panels) == [
        *("face", "FTT attention", "Grad-CAM, MBblock"),
        *("stage 1, gamma 0.5", "stage 2, gamma -0.25"),
    ]
    assert len({pixels.shape for pixels in panels.values()}) == 1
    assert lines[:2] == ["real: score 0.250 (fake from 0.400)", "a/b.jpg"]


def test_maps_are_those_of_the_view_against_even_attention(two_stages):
    view = two_stages.preprocessing(face(60, 40))
    (_, both, cam), stages = explain.panels(two_stages, view)[0]
    images = scale(view[None])
    model, variables = two_stages.model(), two_stages.variables
    maps = explanation.attention_maps(model, variables, images)
    for panel, expected in zip(stages, maps, strict=True):
        np.testing.assert_allclose(panel.heat.mean(), 1, rtol=1e-4)
        np.testing.assert_allclose(panel.heat / panel.heat.size, expected[0], rtol=1e-3)
    expected = np.asarray(explanation.grad_cam(model, variables, images)[0])
    assert expected.max() > 0
    np.testing.assert_allclose(cam.heat, expected, rtol=1e-3)
    large = [
        np.array(Image.fromarray(panel.heat).resize((256, 256), Image.BILINEAR))
        for panel in stages
    ]
    np.testing.assert_allclose(both.heat, (2 * large[0] + large[1]) / 3, atol=2e-3)


def test_a_single_stage_is_the_attention(figure):
    panels, _ = figure(Detector())
    assert list(panels) == ["face", "FTT attention, gamma 0.5", "Grad-CAM, MBblock"]


def test_an_attention_of_gamma_0_is_called_unused(figure):
    panels, lines = figure(Detector(gammas=(0.0, 0.0)))
    stages = [f"stage {m}, gamma 0: unused" for m in (1, 2)]
    assert list(panels) == ["face", "Grad-CAM, MBblock", *stages]
    assert "all gamma are 0: the attention is unused" in lines


def test_what_a_network_has_not_is_left_out_and_told(figure):
    panels, lines = figure(Detector(gammas=()))
    assert list(panels) == ["face", "Grad-CAM, MBblock"]
    told = " ".join(lines[2:])
    assert told.startswith("network: FDFtNet with M = 0 stages: no attention Grad-CAM:")
    for kind in ("linear", "classifier"):
        panels, lines = figure(Detector(kind))
        assert list(panels) == ["face"]
        told = f"network: {kind}, which has neither FTT nor MBblock branch: no maps"
        assert " ".join(lines[2:]) == told


def test_a_place_that_is_attended_to_is_bright(monkeypatch, figure):
    """Stand-ins for the maps, above left and below right."""
    detector = Detector()
    heat = np.zeros((1, 4, 4), np.float32)
    heat[0, 0, 0] = 1
    monkeypatch.setattr(explanation, "attention_maps", lambda *_: (heat,))
    monkeypatch.setattr(explanation, "grad_cam", lambda *_: heat[:, ::-1, ::-1])
    panels, _ = figure(detector, np.full((48, 48, 3), 90, np.uint8))
    seen, attention, cam = (pixels.astype(int).sum(-1) for pixels in panels.values())
    assert (seen == 270).all()
    assert attention[20, 20] > 2 * attention[-20, -20] < cam[-20, -20]
    assert attention[20, 20] > 2 * cam[20, 20] < cam[-20, -20]


def test_even_attention_and_an_empty_map_are_not_bright(monkeypatch, figure):
    even = np.full((1, 4, 4), 1 / 16, np.float32)
    monkeypatch.setattr(explanation, "attention_maps", lambda *_: (even,))
    monkeypatch.setattr(explanation, "grad_cam", lambda *_: 0 * even)
    panels, _ = figure(Detector(), np.zeros((48, 48, 3), np.uint8))
    _, attention, cam = (pixels.mean() for pixels in panels.values())
    assert cam < 5 < attention < 100


def test_calibrated_faces_and_other_thresholds(figure):
    row = ROW._replace(probability=0.625, verdict="fake")
    _, lines = figure(Detector("linear"), row=row, threshold=0.5)
    assert lines[:2] == [
        "fake: P(fake) 0.625 (fake from 0.500)",
        "P(fake) is calibrated; raw score 0.250",
    ]


def test_both_thresholds_are_said(figure):
    row = ROW._replace(probability=0.4, verdict="undecided")
    _, lines = figure(Detector("linear"), row=row, threshold=0.5, lower=0.3)
    assert lines[0] == "undecided: P(fake) 0.400 (fake from 0.500, real below 0.300)"


def test_of_windows_the_most_fake_one_is_shown(figure):
    detector = Detector(view="crops", grid=2)
    image = np.zeros((48, 48, 3), np.uint8)
    image[40:, :8] = 200
    panels, lines = figure(detector, image)
    np.testing.assert_array_equal(panels["face"], image[16:, :32])
    assert "seen: window 3 of 4, which looks most fake" in lines


@pytest.mark.parametrize("name", ["人 $x$\n\udcff.jpg", "b" * 400 + ".jpg"])
def test_any_name_and_picture(name, tmp_path, monkeypatch):
    detector = Detector("linear")
    for image in (face(1, 1), face(3, 700)):
        path = tmp_path / "new" / "a.png"
        explain.draw(path, name, image, detector, ROW)
        with Image.open(path) as written:
            assert written.format == "PNG" and 500 < written.width < 1000
