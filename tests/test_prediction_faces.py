"""The faces of a picture: which, where, why none; and that training cut the same."""

import concurrent.futures
import dataclasses

import drawn_videos
import face_crop_runs
import numpy as np
import pytest
from drawn_videos import BLUE, canvas, rectangle

from configs import prepare_faces
from fdftnet_jax.data import images
from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import detection, preparation, videos
from fdftnet_jax.faces.choice import FaceRules
from fdftnet_jax.faces.crops import Rules
from fdftnet_jax.faces.detection import Face
from fdftnet_jax.prediction import faces

STUB = FaceRules("stub", "all", margin=0.25, min_size=24, min_confidence=0.5)
CARD = {"detector": "cascade", "margin": 0.3, "min_size": 48, "min_confidence": 4.5}


@pytest.fixture
def found_boxes(monkeypatch):
    """What the detector 'stub' finds; without, it finds rectangles."""
    boxes = []

    class Detector(drawn_videos.Stub):
        def __call__(self, image, smallest):
            return boxes or super().__call__(image, smallest)

    monkeypatch.setitem(detection.DETECTORS, "stub", Detector)
    monkeypatch.setattr(faces, "_local", faces._Local())
    return boxes


@pytest.mark.parametrize("which", ["largest", "all"])
def test_crops_are_those_that_the_preparation_makes(which, tmp_path, monkeypatch):
    """With the cascade, on drawn faces, one of which has no room for its margin."""
    face_crop_runs.without_processes(monkeypatch)
    image = drawn_videos.face(20, 30, 90, canvas(240, 360))
    image = drawn_videos.face(240, 130, 70, image)
    path = drawn_videos.write(tmp_path / "a.avi", [image, np.roll(image, 3, axis=1)])
    config = prepare_faces.get_config()
    config.update(every=1, faces=which, min_size=48, margin=0.3, min_confidence=4.5)
    preparation.prepare(config, path, tmp_path / "out")
    rules = dataclasses.replace(faces.rules_of(CARD), faces=which)
    number = 0
    for frame in videos.read(path):
        found, reason = faces.find(frame.pixels, rules)
        assert len(found) == (1 if which == "largest" else 2) and reason == ""
        for i, face in enumerate(found):
            crop = images.decode(tmp_path / f"out/a/{frame.number:06d}_{i}.png")
            np.testing.assert_array_equal(face.crop, crop)
            number += 1
    assert number == len(list(tmp_path.rglob("*.png")))


def test_the_default_rules_are_those_of_the_preparation():
    config = prepare_faces.get_config().to_dict()
    rules = dataclasses.asdict(Rules())
    # 0 is the detector's own.
    assert config.pop("min_confidence") == 0
    assert rules["min_confidence"] == detection.Cascade.min_confidence
    assert all(config[name] == rules[name] for name in rules if name in config)
    ours = dataclasses.asdict(faces.rules_of(None))
    assert ours.pop("faces") == "all"
    assert all(rules[name] == value for name, value in ours.items())


def test_rules_of_a_card():
    rules = faces.rules_of(CARD | {"faces": "largest", "every": 10})
    assert rules == FaceRules("cascade", "all", 0.3, 48, 4.5)
    rules = faces.rules_of(CARD | {"min_confidence": 0.0})
    assert rules.min_confidence == detection.Cascade.min_confidence
    with pytest.raises(UserError, match="found no margin and no min_size;"):
        faces.rules_of({"detector": "cascade", "min_confidence": 5})
    with pytest.raises(UserError, match="found 'retina' on the detector's card"):
        faces.rules_of(CARD | {"detector": "retina"})


def test_faces_come_with_their_places(found_boxes):
    image = rectangle(90, 60, 50, 40, BLUE, rectangle(10, 10, 40, 40))
    (large, small), reason = faces.find(image, STUB)
    assert reason == "" and large.box == (90, 60, 50, 40) and large.confidence == 0.8
    assert small.box == (10, 10, 40, 40) and small.confidence == 0.9
    # 1.5 times the longer side; that of the second reaches the picture's edge.
    assert large.square == (77, 42, 75) and small.square == (0, 0, 60)
    np.testing.assert_array_equal(large.crop, image[42:117, 77:152])
    # The picture is not kept in memory by its crops.
    assert large.crop.base is None


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([], "no face found"),
        ([Face(5, 5, 40, 40, 0.25)], "no sure face (confidence 0.25, at least 0.5)"),
        ([Face(5, 5, 40, 20, 0.9)], "face too small (20 pixels, at least 24)"),
    ],
)
def test_why_there_is_no_face(boxes, reason, found_boxes):
    found_boxes += boxes
    assert faces.find(canvas(), STUB) == ([], reason)


def test_one_face_found_twice_is_one(found_boxes):
    found_boxes += [
        Face(20, 20, 60, 60, 0.7),
        # Within it; 49 % and 51 % of it in the first; the same once more; another.
        Face(30, 30, 30, 30, 0.9),
        Face(55, 79 - 49 + 1, 25, 100 - 2, 0.9),
        Face(20, 55, 40, 49, 0.9),
        Face(20, 20, 60, 60, 0.7),
        Face(100, 60, 40, 40, 0.9),
    ]
    found, _ = faces.find(canvas(200, 200), STUB)
    kept = [face.box for face in found]
    assert kept == [(20, 20, 60, 60), (55, 31, 25, 98), (100, 60, 40, 40)]


def test_each_thread_has_its_own_detector(monkeypatch, found_boxes):
    made = []

    class Counted(drawn_videos.Stub):
        def __init__(self):
            made.append(self)

    monkeypatch.setitem(detection.DETECTORS, "stub", Counted)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            faces.find(canvas(), STUB)
            pool.submit(faces.find, canvas(), STUB).result()
    assert len(made) == 2
