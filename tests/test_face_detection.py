"""What detectors give, and the squares that are cut out."""

import importlib.machinery
import importlib.metadata
import sys
import types

import cv2
import drawn_videos
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import detection
from fdftnet_jax.faces.detection import Cascade, Face, Mtcnn, square_around

# Squares.


@st.composite
def boxes(draw):
    """A picture's height and width, and a box in it."""
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    w, h = draw(st.integers(1, width)), draw(st.integers(1, height))
    x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
    return height, width, Face(x, y, w, h, 1.0)


@given(boxes(), st.floats(0, 3))
def test_a_square_lies_in_the_picture_around_the_face(picture, margin):
    height, width, face = picture
    square = square_around(face, margin, height, width)
    assert square.side > 0
    crop = square.cut(np.zeros((height, width, 3)))
    assert crop.shape == (square.side, square.side, 3)
    longer = max(face.width, face.height)
    assert square.side == min(round(longer * (1 + 2 * margin)), height, width)
    for start, size, box, side, whole in (
        (square.x, square.side, face.x, face.width, width),
        (square.y, square.side, face.y, face.height, height),
    ):
        # The centres, and how far the square may move.
        wanted, centre = box + side / 2, start + size / 2
        if abs(wanted - centre) > 0.5:
            assert start == 0 or start + size == whole
            assert start == 0 or centre < wanted
            assert start + size == whole or centre > wanted
        if longer <= min(height, width):
            assert start <= box and box + side <= start + size


def test_the_margin_is_a_share_of_the_longer_side_on_each_side():
    square = square_around(Face(400, 300, 100, 80, 1), 0.3, 1000, 1000)
    assert square == (370, 260, 160)


# The cascade.


@pytest.mark.parametrize("side", [60, 100, 150])
def test_the_cascade_finds_a_drawn_face(side):
    image = drawn_videos.face(90, 40, side, drawn_videos.canvas(240, 320))
    [found] = Cascade()(image, 24)
    assert found.confidence >= Cascade.min_confidence
    assert 0.7 < found.width / side < 1.5 and found.width == found.height
    centre = found.x + found.width / 2, found.y + found.height / 2
    np.testing.assert_allclose(centre, (90 + side / 2, 40 + side / 2), atol=side / 6)


def test_the_cascade_finds_two_faces_and_none_below_the_smallest():
    image = drawn_videos.face(20, 60, 40, drawn_videos.canvas(300, 400))
    image = drawn_videos.face(200, 80, 120, image)
    cascade = Cascade()
    assert len(cascade(image, 24)) == 2
    [large] = cascade(image, 100)
    assert large.x > 150


def test_the_cascade_is_sure_of_no_face_in_noise():
    rng = np.random.default_rng(0)
    for image in (
        rng.integers(0, 256, (240, 320, 3), np.uint8),
        cv2.GaussianBlur(rng.integers(0, 256, (240, 320, 3), np.uint8), (0, 0), 4),
        drawn_videos.canvas(),
    ):
        found = Cascade()(image, 24)
        assert all(face.confidence < Cascade.min_confidence for face in found)


def test_the_cascade_looks_at_luminance_and_converts_boxes(monkeypatch):
    """A stand-in for OpenCV's detector, which gives arrays of its own."""
    seen = []

    class Classifier:
        def __init__(self, path):
            seen.append(path)

        def detectMultiScale2(self, image, **options):  # noqa: N802
            seen.append((image, options))
            boxes = np.array([[1, 2, 30, 31], [5, 6, 40, 41]], np.int32)
            return boxes, np.array([[7], [3]], np.int32)

    monkeypatch.setattr(cv2, "CascadeClassifier", Classifier)
    image = drawn_videos.canvas(50, 60, (200, 100, 50))
    found = Cascade()(image, 33)
    assert found == [Face(1, 2, 30, 31, 7.0), Face(5, 6, 40, 41, 3.0)]
    assert all(type(value) in (int, float) for face in found for value in face)
    path, (grey, options) = seen
    assert path.endswith(Cascade._FILE)
    # ITU-R BT.601.
    np.testing.assert_allclose(grey, 0.299 * 200 + 0.587 * 100 + 0.114 * 50, atol=0.6)
    assert options["minSize"] == (33, 33)


def test_versions_name_what_determines_the_boxes():
    assert cv2.__version__ in Cascade.version()
    assert importlib.metadata.version("opencv-python-headless")[:2] == "4."


# MTCNN, with a stand-in for the package.


@pytest.fixture
def mtcnn(monkeypatch):
    """What the stand-in has seen, and what it finds."""
    state = types.SimpleNamespace(images=[], found=[], device=[])

    class Detector:
        def detect_faces(self, image):
            state.images.append(image)
            return state.found

    tensorflow = types.SimpleNamespace(
        config=types.SimpleNamespace(
            set_visible_devices=lambda *call: state.device.append(call),
            threading=types.SimpleNamespace(
                set_intra_op_parallelism_threads=state.device.append,
                set_inter_op_parallelism_threads=state.device.append,
            ),
        )
    )
    monkeypatch.setitem(
        sys.modules, "mtcnn", types.SimpleNamespace(MTCNN=Detector, __spec__=1)
    )
    tensorflow.__spec__ = 1
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setattr(
        importlib.metadata,
        "packages_distributions",
        lambda: {"tensorflow": ["tensorflow_cpu"], "mtcnn": ["mtcnn"]},
    )
    versions = {"mtcnn": "1.2.3", "tensorflow_cpu": "4.5.6"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    return state


def box(x, y, width, height, confidence=0.9):
    return {"box": [x, y, width, height], "confidence": np.float64(confidence)}


def test_mtcnn_boxes_are_clipped_to_the_picture(mtcnn):
    mtcnn.found = [box(10, 20, 30, 50), box(-5, 90, 20, 40), box(200, 0, 10, 10)]
    image = drawn_videos.canvas(120, 160)
    found = Mtcnn()(image, 40)
    assert found == [Face(10, 20, 30, 50, 0.9), Face(0, 90, 15, 30, 0.9)]
    assert all(type(value) in (int, float) for face in found for value in face)
    np.testing.assert_array_equal(mtcnn.images[0], image)
    assert mtcnn.device == [([], "GPU"), 1, 1]


def test_mtcnn_looks_at_a_smaller_picture_for_large_faces(mtcnn):
    mtcnn.found = [box(10, 20, 30, 50)]
    found = Mtcnn()(drawn_videos.canvas(240, 320), 80)
    assert mtcnn.images[0].shape == (120, 160, 3)
    assert found == [Face(20, 40, 60, 100, 0.9)]


def test_mtcnn_is_spared_pictures_too_small_for_it(mtcnn):
    mtcnn.found = [box(1, 2, 3, 4)]
    assert Mtcnn()(drawn_videos.canvas(23, 160), 24) == []
    assert Mtcnn()(drawn_videos.canvas(200, 300), 400) == []
    assert not mtcnn.images


def test_mtcnn_names_both_versions(mtcnn):
    assert Mtcnn.version() == "mtcnn 1.2.3, TensorFlow 4.5.6"


@pytest.mark.parametrize(
    "missing", [["mtcnn"], ["tensorflow"], ["mtcnn", "tensorflow"]]
)
def test_without_mtcnn_the_error_names_the_command(missing, monkeypatch):
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (
            None if name in missing else importlib.machinery.ModuleSpec(name, 0)
        ),
    )
    for call in (Mtcnn, Mtcnn.version):
        with pytest.raises(UserError, match=r"pip install 'mtcnn>=1,<2' tens") as error:
            call()
        assert f"found no {' and no '.join(missing)};" in str(error.value)
        assert "\n" not in str(error.value)


def test_the_detectors_have_what_the_interface_asks_for():
    for name, detector in detection.DETECTORS.items():
        assert detector.name == name
        assert detector.min_confidence > 0
