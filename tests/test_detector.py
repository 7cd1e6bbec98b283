"""A detector scores as the run did that it was exported from."""

import functools
import json
import os
import pickle
import shutil
from pathlib import Path

import exported
import jax
import jax.export
import numpy as np
import own_cnn
import pytest
import small_runs
from PIL import Image

import fdftnet_jax
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import images
from fdftnet_jax.detector import detector, export, file, network
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import calibration
from fdftnet_jax.faces import choice
from fdftnet_jax.models import own_backbone, registry
from fdftnet_jax.run import Run

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def resized(tmp_path_factory, finetuned):
    """A run that stretches images: its workdir, rows of the test split, and file."""
    folder = tmp_path_factory.mktemp("resized")
    workdir = shutil.copytree(finetuned, folder / "adapted")
    rows = exported.evaluated(workdir)
    path = folder / "resized.safetensors"
    export.write(Run(workdir), path)
    return workdir, rows, path


@pytest.fixture(scope="module")
def cropped(tmp_path_factory, cache_dir):
    """The same of a run that cuts windows, and trains on smaller ones."""
    folder = tmp_path_factory.mktemp("cropped")
    changes = {"data.view": "crops", "data.crop_grid": 2, "epochs": 1}
    changes |= {"data.size": small_runs.SIZE + 8, "data.train_size": small_runs.SIZE}
    workdir = small_runs.run(
        small_runs.config(cache_dir, **changes), folder / "windows"
    )
    rows = exported.evaluated(workdir)
    path = folder / "cropped.safetensors"
    export.write(Run(workdir), path)
    return workdir, rows, path


@pytest.fixture(scope="module")
def loaded(resized):
    return fdftnet_jax.load(resized[2])


@pytest.mark.parametrize("kind", ["resized", "cropped"])
def test_scores_are_those_of_the_evaluation(kind, request):
    workdir, rows, path = request.getfixturevalue(kind)
    pictures = exported.pictures(workdir)
    assert list(pictures) == list(rows) and len(rows) == 18
    found = fdftnet_jax.load(path)
    arrays = list(pictures.values())
    expected = exported.column(rows, "score")
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found.score(arrays), expected, atol=1e-5)

    views = np.stack([found.preprocessing(picture) for picture in arrays])
    assert views.ndim == (5 if kind == "cropped" else 4)
    logits = found.logits(views)
    np.testing.assert_allclose(logits, exported.column(rows, "logit"), atol=1e-5)
    calibrated = exported.column(rows, "calibrated")
    np.testing.assert_allclose(found.probability(logits), calibrated, atol=1e-5)
    verdicts = np.where(logits >= found.threshold, "fake", "real").tolist()
    assert verdicts == [row["verdict"] for row in rows.values()]


@pytest.mark.parametrize("kind", ["resized", "cropped"])
def test_the_program_in_the_file_scores_the_same(kind, request, monkeypatch):
    """Without the code of the network."""
    workdir, rows, path = request.getfixturevalue(kind)
    monkeypatch.setattr(registry, "build", None)
    found = fdftnet_jax.load(path, program=True)
    pictures = list(exported.pictures(workdir).values())
    expected = exported.column(rows, "score")
    np.testing.assert_allclose(found.score(pictures), expected, atol=1e-5)


def test_a_program_that_cannot_be_read(resized, loaded, tmp_path):
    other = exported.without_program(resized[2], tmp_path / "other.safetensors")
    with pytest.warns(UserWarning, match="the network is built by the package's code"):
        found = fdftnet_jax.load(other, program=True)
    pictures = list(exported.pictures(resized[0]).values())[:3]
    np.testing.assert_array_equal(found.score(pictures), loaded.score(pictures))
    # Nobody reads it who is not asked to.
    np.testing.assert_array_equal(
        fdftnet_jax.load(other).score(pictures), loaded.score(pictures)
    )


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize("number", [1, 3])
def test_a_network_that_is_not_the_one_exported(resized, tmp_path, program, number):
    """By the logits that the file states for two pictures."""

    def change(arrays, card):
        (bias,) = (k for k, v in arrays.items() if "bias" in k and v.shape == (2,))
        arrays[bias] = arrays[bias] + np.float32([0.01, 0])

    other = exported.rewritten(resized[2], tmp_path / "other.safetensors", change)
    found = fdftnet_jax.load(other, program=program)
    pictures = list(exported.pictures(resized[0]).values())[:number]
    for _ in range(2):
        with pytest.raises(UserError, match=r"not score here as .* use fdf") as error:
            found.score(pictures)
        # No advice that was followed already.
        assert ("--program" in str(error.value)) == (not program)


def test_a_program_for_other_devices(resized, monkeypatch, tmp_path, loaded):
    def change(arrays, card):
        monkeypatch.setattr(network, "PLATFORMS", ("tpu",))
        weights = {k: v for k, v in arrays.items() if k != detector.STABLEHLO}
        program = network.build(card["model"], "minus_one_one")
        arrays[detector.STABLEHLO] = exported.stablehlo(
            program, weights, small_runs.SIZE
        )

    other = exported.rewritten(resized[2], tmp_path / "tpu.safetensors", change)
    pictures = list(exported.pictures(resized[0]).values())[:3]
    with pytest.warns(UserWarning, match="cannot be used here .*platform"):
        found = fdftnet_jax.load(other, program=True).score(pictures)
    np.testing.assert_allclose(found, loaded.score(pictures), atol=1e-6)


def test_batches_paths_and_arrays_make_no_difference(resized, loaded, tmp_path):
    pictures = list(exported.pictures(resized[0]).values())[:7]
    expected = loaded.score(pictures)
    assert expected.shape == (7,) and expected.dtype == np.float64
    np.testing.assert_allclose(loaded.score(np.stack(pictures)), expected, atol=1e-7)
    np.testing.assert_allclose(
        loaded.score(pictures, batch_size=2), expected, atol=1e-7
    )
    mixed = []
    for index, picture in enumerate(pictures):
        path = tmp_path / f"{index}.png"
        Image.fromarray(picture).save(path)
        mixed.append([picture, path, str(path)][index % 3])
    np.testing.assert_allclose(loaded.score(iter(mixed)), expected, atol=1e-7)
    np.testing.assert_allclose(loaded.score(mixed[1]), expected[1:2], atol=1e-7)
    assert loaded.score([]).shape == (0,)
    assert loaded.logits(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0,)


def test_what_is_no_picture(loaded, tmp_path):
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(images.ImageError, match=r"text\.png"):
        loaded.score([tmp_path / "text.png"])
    for wrong in (np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), 3):
        with pytest.raises(UserError, match=r"expected a picture \[h, w, 3\] uint8"):
            loaded.score([wrong])
    with pytest.raises(UserError, match=r"expected views \[b, 32, 32, 3\] uint8"):
        loaded.logits(np.zeros((1, 64, 64, 3), np.uint8))


def test_the_network_for_explanations(resized, loaded):
    picture = next(iter(exported.pictures(resized[0]).values()))
    view = loaded.preprocessing(picture)[None]
    apply = jax.jit(functools.partial(loaded.model().apply, train=False))
    logits = np.asarray(apply(loaded.variables, view.astype(np.float32) / 127.5 - 1))
    difference = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(loaded.logits(view), difference, atol=1e-5)


def test_the_same_run_gives_the_same_bytes_and_names_no_folder(resized, tmp_path):
    workdir, _, path = resized
    export.write(Run(workdir), tmp_path / "again.safetensors")
    data = path.read_bytes()
    assert (tmp_path / "again.safetensors").read_bytes() == data
    for part in (workdir.parent, REPOSITORY, Path.home()):
        assert os.fsencode(part) not in data
    with pytest.raises(UserError, match="exists; give another path"):
        export.write(Run(workdir), path)
    with pytest.raises(UserError, match=r"expected a folder .*missing"):
        export.write(Run(workdir), tmp_path / "missing" / "a.safetensors")


def test_no_pickle_takes_part(resized, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a pickle")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    found = fdftnet_jax.load(resized[2])
    assert np.isfinite(found.score([np.zeros((9, 9, 3), np.uint8)])).all()


def test_the_card(resized, loaded):
    workdir, _, path = resized
    with Checkpoints(workdir) as checkpoints:
        meta, step = checkpoints.load_meta(), checkpoints.best
    calibrated = calibration.for_run(Run(workdir))
    card = loaded.card
    assert (card["name"], card["toy"]) == ("adapted", False)
    assert card["labels"] == ["real", "fake"]
    assert card["model"] == meta["model"]
    assert card["preprocessing"] == meta["preprocessing"]
    assert card["calibration"] == calibrated.to_dict()
    assert card["threshold"] == {
        "logit": calibrated.threshold_logit,
        "probability": calibrated.threshold_probability,
        "probability_of": "calibrated",
        "rule": "equal error rates on validation",
    }
    own, old = card["trained_on"]
    assert (own["split"], own["shots"], own["real"], own["fake"]) == (
        *("finetune", 12),
        *(12, 12),
    )
    assert (old["name"], old["split"], old["real"]) == ("toy-both", "train", 16)
    assert card["checkpoint"]["step"] == step
    assert card["faces"] is None and card["weights"] is None
    report = json.loads((workdir / "evaluation/toy-both-test.json").read_text())
    (evaluation,) = card["evaluations"]
    assert evaluation["auc"] == report["figures"]["auc"]
    assert evaluation["own"] and evaluation["real"] == 9
    assert card["config"]["seed"] == 0 and "cache_dir" not in card["config"]["data"]
    assert card["config"]["init_from"] == "pretrained"
    assert card["versions"]["jax"] == jax.__version__
    params = jax.tree.leaves(loaded.variables["params"])
    assert card["parameters"]["all"] == sum(leaf.size for leaf in params)
    assert card["licence"] == export.LICENCE
    # Weights once: the program takes them as arguments.
    sizes = {name: array.nbytes for name, array in file.read(path).arrays.items()}
    program = sizes.pop(detector.STABLEHLO)
    assert path.stat().st_size < sum(sizes.values()) + program + 20_000
    assert program < 150_000 < sum(sizes.values())


RULES = {
    "detector": "cascade",
    "detector_version": "OpenCV 5",
    "faces": "largest",
    "margin": 0.2,
    "min_size": 64,
    "min_confidence": 5.0,
}


@pytest.mark.parametrize(
    ("places", "known"),
    [((".",), True), (("real", "fake"), True), (("real", "other"), False), ((), False)],
)
def test_the_rules_that_faces_were_cut_by(tmp_path, places, known):
    for place in places:
        (tmp_path / place).mkdir(exist_ok=True)
        record = RULES | {"every": 10, "margin": 0.5 if place == "other" else 0.2}
        (tmp_path / place / "preparation.json").write_text(json.dumps(record))
    assert choice.recorded_rules(str(tmp_path)) == (RULES if known else None)


def test_a_training_keeps_the_rules_that_its_faces_were_cut_by(tmp_path, cache_dir):
    folder = small_runs.write_folder(tmp_path / "crops", ("train", "validation"))
    (folder / "preparation.json").write_text(json.dumps(RULES))
    config = small_runs.folder_config(cache_dir, folder, epochs=1)
    workdir = small_runs.run(config, tmp_path / "run")
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="is not calibrated"):
        found = export.write(
            Run(workdir),
            tmp_path / "a.safetensors",
            name="ours",
            licence="Research only.",
        )
    assert found.card["faces"] == RULES
    (told,) = found.card["trained_on"]
    assert (told["folder"], told["real"], told["fake"]) == ("crops", 4, 4)
    assert found.card["name"] == "ours"
    assert found.card["licence"].startswith("Research only. The code is under")
    assert found.threshold == 0 and found.probability(np.zeros(2)) is None


def test_a_backbone_of_your_own_needs_the_program_or_its_code(
    resized, tmp_path, monkeypatch
):
    model = {"kind": "classifier", "backbone": "own_cnn:OwnCNN", "dtype": "float32"}
    network_ = own_backbone.build(own_cnn.OwnCNN, "own", num_classes=2)
    variables = network_.init(
        jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False
    )

    def change(arrays, card):
        card["model"] = model
        arrays.clear()
        arrays |= {k: np.asarray(v) for k, v in network.flat(variables).items()}
        program = network.build(model, "minus_one_one")
        card["check"] = np.asarray(
            program(arrays, network.check_views(small_runs.SIZE))
        ).tolist()
        arrays[detector.STABLEHLO] = exported.stablehlo(
            program, arrays, small_runs.SIZE
        )

    path = exported.rewritten(resized[2], tmp_path / "own.safetensors", change)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    trusted = fdftnet_jax.load(path, import_backbone=True)
    apply = jax.jit(functools.partial(trusted.model().apply, train=False))
    logits = apply(trusted.variables, picture[None] / np.float32(127.5) - 1)
    expected = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(trusted.logits(picture[None]), expected, atol=1e-5)

    def refuse(path):
        raise AssertionError(f"imports {path}")

    monkeypatch.setattr(own_backbone, "find", refuse)
    found = fdftnet_jax.load(path, program=True)
    np.testing.assert_allclose(found.logits(picture[None]), expected, atol=1e-5)
    for ask in (found.model, lambda: fdftnet_jax.load(path)):
        with pytest.raises(UserError, match=r"own_cnn:OwnCNN.*\(--program"):
            ask()
    other = exported.without_program(path, tmp_path / "other.safetensors")
    with (
        pytest.warns(UserWarning, match="is built by"),
        pytest.raises(UserError, match="import_backbone=True"),
    ):
        fdftnet_jax.load(other, program=True)
