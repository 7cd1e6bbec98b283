"""Adaptation to the faces of pictures and videos, which are cut out first."""

import csv

import drawn_videos
import face_crop_runs
import numpy as np
import pytest
import small_runs
from PIL import Image

from fdftnet_jax import cli
from fdftnet_jax.adaptation import adapt, faces
from fdftnet_jax.data import images, splits
from fdftnet_jax.detector import detector, export, file
from fdftnet_jax.errors import UserError
from fdftnet_jax.faces import choice
from fdftnet_jax.prediction import faces as prediction_faces
from fdftnet_jax.run import Run

pytestmark = pytest.mark.slow

RULES = {
    **{"detector": "cascade", "detector_version": "1", "faces": "largest"},
    **{"margin": 0.3, "min_size": 48, "min_confidence": 4.5},
}
EACH = 40


def _picture(number, shift=0):
    """A face somewhere in a noisy picture; `shift` makes it a forgery."""
    rng = np.random.default_rng(number)
    x, y = rng.integers(20, 60, 2)
    image = drawn_videos.face(x, y, 90, drawn_videos.canvas(220, 260)).astype(int)
    image += rng.integers(-6, 7, image.shape)
    image[..., 0] += shift
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """real/ of pictures and one of nothing, fake/ of pictures and a video."""
    folder = tmp_path_factory.mktemp("given") / "mine"
    for first, (name, shift) in enumerate((("real", 0), ("fake", 30))):
        (folder / name).mkdir(parents=True)
        for number in range(EACH):
            picture = Image.fromarray(_picture(100 * first + number, shift))
            picture.save(folder / name / f"{name}{number}.png")
    Image.fromarray(drawn_videos.canvas(220, 260)).save(folder / "real" / "empty.png")
    frames = [_picture(900 + i, 30) for i in range(41)]
    drawn_videos.write(folder / "fake" / "film.avi", frames)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory, cache_dir):
    """A detector that works on faces."""
    folder = tmp_path_factory.mktemp("old")
    run = small_runs.run(small_runs.config(cache_dir, epochs=1), folder / "base")
    with Run(run) as opened:
        export.write(opened, folder / "old.safetensors")
    contents = file.read(folder / "old.safetensors")
    card = {**contents.card, "faces": RULES}
    file.write(folder / "old.safetensors", contents.arrays, card)
    return folder / "old.safetensors"


@pytest.fixture
def serial(monkeypatch):
    return face_crop_runs.without_processes(monkeypatch)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def options(given, out, **changes):
    real, fake = str(given / "real"), str(given / "fake")
    return adapt.Options(str(out), real, fake, epochs=1, **changes)


@pytest.mark.filterwarnings("ignore:images of .* that look alike")
def test_a_detector_of_faces_learns_faces(given, start, tmp_path, serial, capsys):
    work, out = tmp_path / "work", tmp_path / "new.safetensors"
    asked = options(given, out, start=str(start), workdir=str(work), force=True)
    assert adapt.adapt(asked) == 0
    told = capsys.readouterr().err
    assert "faces out of 82 pictures and videos; without a face: 1 no face" in told
    found = detector.load(out)
    cut_by = {**found.card["faces"], "detector_version": RULES["detector_version"]}
    assert cut_by == RULES
    crops = work / "data" / "new" / "mine"
    rules = prediction_faces.rules_of(found.card["faces"])
    picture = images.decode(given / "real" / "real3.png")
    (face, *_), _ = prediction_faces.find(picture, rules)
    crop = crops / "real" / "mine" / "real3" / "000000_0.png"
    np.testing.assert_array_equal(images.decode(crop), face.crop)
    # The frames of a film are one group.
    film = sorted((crops / "fake" / "mine" / "film").glob("*.png"))
    assert [path.name for path in film] == [f"{i:06d}_0.png" for i in range(0, 41, 10)]
    (adaptation,) = found.card["adaptations"]
    assert adaptation["group_by"] == faces.BY_SOURCE
    assert splits.search("group_by", faces.BY_SOURCE, "mine/film/000010_0.png") == (
        "film"
    )
    # The same command cuts nothing anew; predict and check cut alike.
    before = len(serial)
    adapt.make_config(asked, work)
    assert len(serial) == before
    (stated,) = adaptation["sets"]
    capsys.readouterr()
    assert cli.main(["check", str(out), str(given)]) == 0
    said = capsys.readouterr().out
    assert f"AUROC {stated['after']['auc']:.3f}" in said and "as its file" in said
    results = tmp_path / "results.csv"
    wanted = str(given / "real" / "real3.png")
    assert cli.main(["predict", str(out), wanted, "--csv", str(results)]) == 0
    with results.open() as table:
        rows = list(csv.DictReader(table))
    score = float(found.score([face.crop])[0])
    assert float(rows[-1]["score"]) == pytest.approx(score, abs=1e-4)


def test_when_faces_are_cut_out(given, tmp_path, serial):
    """By the detector to start from; without one, for videos; or as asked."""
    both = [str(given / name) for name in splits.CLASSES]
    only_pictures = [str(given / "real")]
    assert faces.crops_for("auto", None, only_pictures) is None
    assert faces.crops_for("whole", RULES, both) is None
    default = choice.FaceRules()
    for found in (
        faces.crops_for("auto", None, both),
        faces.crops_for("crop", None, only_pictures),
    ):
        assert found.rules == default
    own = faces.crops_for("auto", RULES, only_pictures)
    assert own.rules == choice.FaceRules(margin=0.3, min_size=48, min_confidence=4.5)
    # Crops that were made so are taken as they are; others cut anew.
    crops = tmp_path / "crops"
    own.make(given, crops)
    made = [str(crops / name) for name in splits.CLASSES]
    recorded = choice.recorded_rules(str(crops))
    for rules in (None, recorded):
        again = faces.crops_for("auto", rules, made)
        assert again.rules is None and again.record == crops / choice.PREPARATION
    assert faces.crops_for("auto", RULES | {"margin": 0.5}, made).rules is not None
    assert faces.crops_for("auto", None, [*made, str(given / "real")]) is None


def test_crops_are_linked(given, tmp_path, serial):
    made = tmp_path / "crops"
    faces.Crops(choice.FaceRules(margin=0.3)).make(given, made)
    config = adapt.make_config(options(made, tmp_path / "new"), tmp_path / "work")
    assert config.data.group_by == faces.BY_SOURCE
    assert choice.recorded_rules(config.data.dir) == choice.recorded_rules(str(made))
    linked = tmp_path / "work" / "data" / "new" / "crops" / "real" / "crops" / "real3"
    assert (linked / "000000_0.png").is_file()


def test_a_film_without_faces(given, tmp_path, serial):
    """One line, which names the list of what was found."""
    for name in splits.CLASSES:
        film = tmp_path / "none" / name / f"{name}.avi"
        drawn_videos.write(film, [drawn_videos.canvas(220, 260)] * 3)
    with pytest.raises(UserError, match=r"expected faces in 2 .*listed in"):
        adapt.adapt(options(tmp_path / "none", tmp_path / "new.safetensors"))


def test_a_damaged_picture_is_told(given, tmp_path, serial, capsys):
    folder = tmp_path / "some"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "cut.png").write_bytes(
        (given / "real" / "real0.png").read_bytes()[:500]
    )
    (folder / "real" / "whole.png").write_bytes(
        (given / "real" / "real0.png").read_bytes()
    )
    faces.Crops(choice.FaceRules()).make(folder, tmp_path / "out")
    assert "cut 1 faces out of 2 pictures" in capsys.readouterr().err
    said = (tmp_path / "out" / "rejected.csv").read_text()
    assert "\nreal/cut.png,,unreadable image," in said
