import functools
import json
import shutil

import chex
import numpy as np
import pytest
import small_runs
from PIL import Image

from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.training import steps
from fdftnet_jax.training.checkpoint import Checkpoints
from fdftnet_jax.training.run_files import read_history


def contents(workdir):
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def test_what_a_run_writes(pretrained, cache_dir):
    written = json.loads((pretrained / "config.json").read_text())
    assert written == json.loads(small_runs.config(cache_dir).to_json())
    rows = read_history(pretrained)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 4), (2, 8), (3, 12)]
    for row in rows:
        assert all(np.isfinite(value) for value in row.values())
        assert row["images_per_second"] > 0
    # Warm-up over 4 steps, then half a cosine over 8: the rate of each last step.
    rates = [row["learning_rate"] for row in rows]
    cosine = [0.015 * (1 + np.cos(np.pi * step / 8)) for step in (3, 7)]
    np.testing.assert_allclose(rates, [0.03 * 3 / 4, *cosine], rtol=1e-5)
    assert list((pretrained / "tensorboard").glob("events.*"))
    losses = [row["validation_loss"] for row in rows]
    with Checkpoints(pretrained) as checkpoints:
        assert checkpoints.latest == 12
        assert checkpoints.best == rows[int(np.argmin(losses))]["step"]
        meta = checkpoints.load_meta(12)
    assert meta["progress"] == {
        "epoch": 3,
        "best_epoch": int(np.argmin(losses)) + 1,
        "best_loss": min(losses),
        "finished": True,
        "steps": 0,
        "sums": {},
    }
    assert meta["labels"] == ["real", "fake"]
    assert meta["preprocessing"]["size"] == small_runs.SIZE


class StopError(Exception):
    """Stands for a machine that goes down."""


def stop(monkeypatch, epoch, before_saving):
    """Makes a run stop in an epoch, just before or just after its checkpoint."""
    save = Checkpoints.save

    def interrupted(self, state, meta, validation_loss):
        if meta["progress"]["epoch"] < epoch:
            return save(self, state, meta, validation_loss)
        if not before_saving:
            save(self, state, meta, validation_loss)
        raise StopError

    monkeypatch.setattr(Checkpoints, "save", interrupted)


def stop_before_training(monkeypatch):
    def stopped(*_):
        raise StopError

    monkeypatch.setattr(steps, "shard", stopped)


@pytest.mark.parametrize(
    ("kind", "before_saving"),
    [("pretrained", False), ("pretrained", True), ("finetuned", False)],
)
def test_a_resumed_run_is_the_undisturbed_one(
    kind, before_saving, pretrained, cache_dir, tmp_path, monkeypatch, request, capsys
):
    undisturbed = request.getfixturevalue(kind)
    init_from = pretrained if kind == "finetuned" else ""
    config = small_runs.config(cache_dir, init_from)
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop(patch, 2, before_saving)
        small_runs.run(config, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        steps_per_epoch = read_history(undisturbed)[0]["step"]
        assert checkpoints.latest == steps_per_epoch * (1 if before_saving else 2)
    # The last line may have been cut off, too.
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    # A free key may change.
    config = small_runs.config(
        cache_dir, init_from, **{"data.threads": 2, "data.memory_megabytes": 0}
    )
    small_runs.run(config, tmp_path)
    assert f"resuming {tmp_path} after epoch {1 if before_saving else 2}" in (
        capsys.readouterr().err
    )
    assert small_runs.history(tmp_path) == small_runs.history(undisturbed)
    chex.assert_trees_all_equal(
        small_runs.arrays(tmp_path), small_runs.arrays(undisturbed)
    )
    with Checkpoints(tmp_path) as ours, Checkpoints(undisturbed) as others:
        assert ours.best == others.best
        chex.assert_trees_all_equal(ours.load_variables(), others.load_variables())


def test_a_finished_run_says_so_and_changes_nothing(pretrained, cache_dir, capsys):
    before = contents(pretrained)
    small_runs.run(small_runs.config(cache_dir), pretrained)
    assert f"{pretrained} is finished: 3 epochs, best" in capsys.readouterr().err
    assert contents(pretrained) == before


def test_a_changed_config_is_refused(pretrained, cache_dir):
    before = contents(pretrained)
    changes = {"optimizer.learning_rate": 0.25, "batch_size": 4, "data.threads": 3}
    with pytest.raises(
        UserError,
        match=r"\(batch_size: 8 -> 4; optimizer.learning_rate: 0.03 -> 0.25\)",
    ):
        small_runs.run(small_runs.config(cache_dir, **changes), pretrained)
    assert contents(pretrained) == before


def test_a_run_without_a_checkpoint_may_change_its_config(
    cache_dir, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop(patch, 1, before_saving=True)
        small_runs.run(small_runs.config(cache_dir, epochs=9), tmp_path)
    small_runs.run(small_runs.config(cache_dir, epochs=1), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 1
    assert len(small_runs.history(tmp_path)) == 1


def test_changed_data_is_refused(cache_dir, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "photos")
    config = folder_config(cache_dir, folder)
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop(patch, 1, before_saving=False)
        small_runs.run(config, tmp_path / "run")
    (folder / "train" / "real" / "0.png").unlink()
    with pytest.raises(UserError, match=r"data of .*run has changed"):
        small_runs.run(config, tmp_path / "run")


def test_early_stopping_and_selection(cache_dir, tmp_path, monkeypatch, capsys):
    """By the validation loss alone; the epoch with the lowest is the best."""
    small_runs.pretend(monkeypatch, 0.9, 0.5, 0.7, 0.5, 0.6, 0.1)
    config = small_runs.config(cache_dir, epochs=20, patience=3)
    small_runs.run(config, tmp_path)
    found = [row["validation_loss"] for row in small_runs.history(tmp_path)]
    assert found == [0.9, 0.5, 0.7, 0.5, 0.6]
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best, checkpoints.latest) == (8, 20)
        assert checkpoints.load_meta(20)["progress"] == {
            "epoch": 5,
            "best_epoch": 2,
            "best_loss": 0.5,
            "finished": True,
            "steps": 0,
            "sums": {},
        }
    assert "finished after 5 epochs; best validation loss 0.5000 in epoch 2" in (
        capsys.readouterr().err
    )


# Fine-tuning.


def test_fine_tuning_starts_from_the_best_backbone_and_keeps_it(
    cache_dir, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        small_runs.pretend(patch, 0.2, 0.1, 0.3)
        base = small_runs.run(small_runs.config(cache_dir), tmp_path / "base")
    workdir = small_runs.run(small_runs.config(cache_dir, base), tmp_path / "run")
    with Checkpoints(base) as checkpoints:
        assert checkpoints.best < checkpoints.latest
        best = checkpoints.load_variables()
    with Checkpoints(workdir) as checkpoints:
        latest = checkpoints.load_variables(checkpoints.latest)
    for collection in ("params", "batch_stats"):
        # The classification layers are cut off.
        expected = {k: v for k, v in best[collection].items() if k != "top"}
        assert expected
        chex.assert_trees_all_equal(latest[collection]["backbone"], expected)


def test_a_fine_tuning_goes_on_without_the_run_it_came_from(
    pretrained, cache_dir, tmp_path, monkeypatch, capsys
):
    base = shutil.copytree(pretrained, tmp_path / "base")
    config = small_runs.config(cache_dir, base)
    stop(monkeypatch, 1, before_saving=False)
    with pytest.raises(StopError):
        small_runs.run(config, tmp_path / "run")
    monkeypatch.undo()
    shutil.rmtree(base)
    small_runs.run(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        meta = checkpoints.load_meta()
    assert [r["data"]["train_split"] for r in meta["trained_on"]] == [
        "finetune",
        "train",
    ]
    small_runs.run(config, tmp_path / "run")
    assert "is finished" in capsys.readouterr().err


def test_an_unfinished_pre_training_is_warned_of(cache_dir, tmp_path, monkeypatch):
    stop(monkeypatch, 2, before_saving=True)
    with pytest.raises(StopError):
        small_runs.run(small_runs.config(cache_dir), tmp_path / "base")
    monkeypatch.undo()
    stop_before_training(monkeypatch)
    with (
        pytest.warns(UserWarning, match="base has not finished"),
        pytest.raises(StopError),
    ):
        small_runs.run(
            small_runs.config(cache_dir, tmp_path / "base"), tmp_path / "run"
        )


def test_fine_tuning_goes_on_from_a_fine_tuned_backbone(finetuned, cache_dir, tmp_path):
    small_runs.run(small_runs.config(cache_dir, finetuned), tmp_path)
    with Checkpoints(finetuned) as old, Checkpoints(tmp_path) as new:
        chex.assert_trees_all_equal(
            old.load_variables()["params"]["backbone"],
            new.load_variables()["params"]["backbone"],
        )


def test_a_released_backbone_is_trained(pretrained, cache_dir, tmp_path):
    config = small_runs.config(cache_dir, pretrained, trainable="all", epochs=1)
    small_runs.run(config, tmp_path)
    with Checkpoints(pretrained) as old, Checkpoints(tmp_path) as new:
        before, after = old.load_variables(), new.load_variables()
    for collection, layer, name in (
        ("params", "conv1", "kernel"),
        ("batch_stats", "bn1", "mean"),
    ):
        found = after[collection]["backbone"][layer][name]
        assert np.any(found != before[collection][layer][name])


@pytest.mark.parametrize(
    ("shots", "said", "number"),
    [(12, False, 24), (99, True, 32), (0, False, 32)],
)
def test_shots(
    shots, said, number, pretrained, cache_dir, tmp_path, monkeypatch, capsys
):
    """Of 16 images a class, whose number the first line says."""
    stop_before_training(monkeypatch)
    config = small_runs.config(cache_dir, pretrained, **{"data.shots": shots})
    with pytest.raises(StopError):
        small_runs.run(config, tmp_path)
    said_now = capsys.readouterr().err
    assert f"on {number} images of toy-both" in said_now
    fewer = (
        "fewer than 99 shots per class in the split 'finetune' of toy-both: taking 16 "
        "real and 16 fake"
    )
    assert (fewer in said_now) == said
    assert ("fewer than" in said_now) == said


def write_folder(folder, splits=("train", "validation", "test", "finetune"), number=4):
    rng = np.random.default_rng(0)
    for split in splits:
        for label in ("real", "fake"):
            target = folder / split / label
            target.mkdir(parents=True)
            for index in range(number):
                picture = rng.integers(0, 256, (40, 48, 3), np.uint8)
                Image.fromarray(picture).save(target / f"{index}.png")
    return folder


def folder_config(cache_dir, folder, init_from="", **changes):
    changes = {"data.name": "folder", "data.dir": str(folder), **changes}
    return small_runs.config(cache_dir, init_from, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "give the workdir of .* with --config.init_from=PATH"),
        ({"init_from": "/nowhere"}, "no checkpoints in /nowhere"),
        (
            {"model.backbone": "squeezenet"},
            "holds the backbone 'small', the config asks for 'squeezenet'",
        ),
        ({"data.size": 64}, "'size': 32.*asks for .*'size': 64"),
        ({"trainable": "tail"}, "expected .head. or .all."),
        ({"batch_size": 7}, "not a multiple of the 2 devices"),
        ({"epochs": 0}, "epochs is 0: expected a whole number, 1 or more"),
        ({"patience": -1}, "patience is -1: expected a whole number, 1 or"),
        ({"seed": -1}, "seed is -1: expected a whole number, 0 to 2147483647"),
        ({"data.shots": -5}, "data.shots is -5: expected a whole number, 0"),
        ({"model.num_stages": 5}, "num_stages is 5: expected a whole number, 1 to 4"),
        ({"data.train_split": "test"}, "'test': expected 'train' or 'finetune'"),
        ({"data.dir": "/nowhere", "data.name": "folder"}, "/nowhere"),
    ],
)
def test_mistakes_of_fine_tuning(changes, message, pretrained, cache_dir, tmp_path):
    config = small_runs.config(cache_dir, pretrained, **changes)
    with pytest.raises(UserError, match=message):
        small_runs.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_classifier_has_no_head_to_train(cache_dir, tmp_path):
    with pytest.raises(UserError, match="freeze nothing"):
        small_runs.run(small_runs.config(cache_dir, trainable="head"), tmp_path)


def test_images_too_small_for_the_backbone(cache_dir, tmp_path):
    changes = {"model.backbone": "squeezenet", "data.size": 8}
    with pytest.raises(UserError, match="8 pixels are too small for squeezenet"):
        small_runs.run(small_runs.config(cache_dir, **changes), tmp_path)


def test_a_backbone_of_other_shapes_is_refused(
    pretrained, cache_dir, tmp_path, monkeypatch
):
    wider = functools.partial(small_runs.SmallNet, features=12)
    monkeypatch.setitem(
        registry.BACKBONES, small_runs.BACKBONE, registry.Backbone(wider)
    )
    message = rf"the backbone in {pretrained} does not fit .* \(8,\) instead of \(12,\)"
    with pytest.raises(UserError, match=message):
        small_runs.run(small_runs.config(cache_dir, pretrained), tmp_path)


def test_one_folder_is_split_in_one_way(cache_dir, pretrained, tmp_path, monkeypatch):
    """Another split of the same folder would test on what the backbone has seen."""
    folder = write_folder(tmp_path / "photos", splits=("",), number=40)
    monkeypatch.chdir(tmp_path)
    small_runs.run(folder_config(cache_dir, folder, epochs=1), tmp_path / "base")

    def finetune(**changes):
        config = folder_config(cache_dir, "photos/", tmp_path / "base", **changes)
        stop_before_training(monkeypatch)
        small_runs.run(config, tmp_path / "run")

    (tmp_path / "link").symlink_to(folder)
    for changes in (
        {"data.fractions.train": 0.4, "data.fractions.test": 0.3},
        {"data.group_by": r"(\d)\.png", "data.dir": "link"},
    ):
        with pytest.raises(UserError, match=r"same folder split by .*give the same"):
            finetune(**changes)
    with pytest.raises(StopError):
        finetune()
    # Another folder may be split in its own way.
    shutil.copytree(folder, tmp_path / "others")
    with pytest.raises(StopError):
        finetune(
            **{
                "data.dir": "others",
                "data.fractions.train": 0.4,
                "data.fractions.test": 0.3,
            }
        )


def test_a_diverged_run_says_so_and_keeps_its_checkpoints(
    cache_dir, tmp_path, monkeypatch
):
    """The loss is finite for an epoch, then not."""
    changes = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}
    changes["optimizer.warmup_epochs"] = 0.0
    with pytest.raises(
        UserError, match=r"loss of step [23] is no longer finite.*lower --config"
    ):
        small_runs.run(small_runs.config(cache_dir, **changes), tmp_path / "first")
    with pytest.raises(UserError, match=r"no checkpoint in .* yet"):
        Checkpoints(tmp_path / "first").load_meta()

    evaluate, calls = steps.evaluate, []

    def evaluate_broken(*arguments):
        found, logits = evaluate(*arguments)
        calls.append(found)
        return {**found, "loss": np.nan if len(calls) == 3 else found["loss"]}, logits

    monkeypatch.setattr(steps, "evaluate", evaluate_broken)
    with pytest.raises(UserError, match=r"in epoch 3 .* end at epoch 2"):
        small_runs.run(small_runs.config(cache_dir), tmp_path / "third")
    with Checkpoints(tmp_path / "third") as checkpoints:
        assert checkpoints.load_meta(checkpoints.latest)["progress"]["epoch"] == 2
        chex.assert_tree_all_finite(checkpoints.load_variables(checkpoints.latest))
