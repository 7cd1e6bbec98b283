"""Runs: what they write, how they go on, which are refused."""

import functools
import json
import shutil

import chex
import numpy as np
import pytest
import small_runs

from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.run import Run
from fdftnet_jax.training import steps


def contents(workdir):
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def test_what_a_run_writes(pretrained, cache_dir):
    written = json.loads((pretrained / "config.json").read_text())
    assert written == json.loads(small_runs.config(cache_dir).to_json())
    rows = Run(pretrained).history()
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
    with monkeypatch.context() as patch, pytest.raises(small_runs.StopError):
        small_runs.stop(patch, 2, before_saving)
        small_runs.run(config, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        steps_per_epoch = Run(undisturbed).history()[0]["step"]
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
    with monkeypatch.context() as patch, pytest.raises(small_runs.StopError):
        small_runs.stop(patch, 1, before_saving=True)
        small_runs.run(small_runs.config(cache_dir, patience=9), tmp_path)
    small_runs.run(small_runs.config(cache_dir, patience=8), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["patience"] == 8
    assert len(small_runs.history(tmp_path)) == 3


def test_changed_data_is_refused(cache_dir, tmp_path, monkeypatch):
    folder = small_runs.write_folder(tmp_path / "photos")
    config = small_runs.folder_config(cache_dir, folder)
    with monkeypatch.context() as patch, pytest.raises(small_runs.StopError):
        small_runs.stop(patch, 1, before_saving=False)
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


def test_the_last_epoch_may_be_the_result(cache_dir, tmp_path, monkeypatch, capsys):
    """Whatever the validation loss is, and without stopping before."""
    small_runs.pretend(monkeypatch, 0.5, 0.1, 0.7, 0.6, 0.8)
    config = small_runs.config(cache_dir, epochs=5, patience=1, keep="last")
    small_runs.run(config, tmp_path)
    with Run(tmp_path) as run:
        assert run.best_step == run.open_checkpoints().latest == 20
        assert (run.best.progress.best_epoch, run.best.progress.best_loss) == (5, 0.8)
    told = capsys.readouterr().err
    assert "finished after 5 epochs; validation loss 0.8000 in epoch 5" in told


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
    folder = small_runs.write_folder(tmp_path / "photos", splits=("",), number=40)
    monkeypatch.chdir(tmp_path)
    small_runs.run(
        small_runs.folder_config(cache_dir, folder, epochs=1), tmp_path / "base"
    )

    def finetune(**changes):
        config = small_runs.folder_config(
            cache_dir, "photos/", tmp_path / "base", **changes
        )
        small_runs.stop_before_training(monkeypatch)
        small_runs.run(config, tmp_path / "run")

    (tmp_path / "link").symlink_to(folder)
    for changes in (
        {"data.fractions.train": 0.4, "data.fractions.test": 0.3},
        {"data.group_by": r"(\d)\.png", "data.dir": "link"},
    ):
        with pytest.raises(UserError, match=r"same folder split by .*give the same"):
            finetune(**changes)
    with pytest.raises(small_runs.StopError):
        finetune()
    # Another folder may be split in its own way.
    shutil.copytree(folder, tmp_path / "others")
    with pytest.raises(small_runs.StopError):
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
