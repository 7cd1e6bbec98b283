"""Fine-tuning runs: where they start, what they train, which mistakes are refused."""

import shutil

import chex
import numpy as np
import pytest
import small_runs

from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import scoring
from fdftnet_jax.run import Run

pytestmark = pytest.mark.slow


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
    small_runs.stop(monkeypatch, 1, before_saving=False)
    with pytest.raises(small_runs.StopError):
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
    small_runs.stop(monkeypatch, 2, before_saving=True)
    with pytest.raises(small_runs.StopError):
        small_runs.run(small_runs.config(cache_dir), tmp_path / "base")
    monkeypatch.undo()
    small_runs.stop_before_training(monkeypatch)
    with (
        pytest.warns(UserWarning, match="base has not finished"),
        pytest.raises(small_runs.StopError),
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


def test_a_run_without_fine_tune_transformer(pretrained, cache_dir, tmp_path):
    changes = {"model.num_stages": 0, "epochs": 1, **small_runs.NO_AUGMENTATION}
    small_runs.run(small_runs.config(cache_dir, pretrained, **changes), tmp_path)
    [row] = small_runs.history(tmp_path)
    assert not [name for name in row if name.startswith("gamma")]
    with Checkpoints(tmp_path) as checkpoints:
        parts = checkpoints.load_variables()["params"]
    assert set(parts) == {"backbone", "mobilenet_head", "classifier"}
    scores = scoring.score_split(Run(tmp_path))
    assert np.isfinite(scores.logits).all() and len(scores.logits) == 18


@pytest.mark.parametrize(
    ("shots", "said", "number"),
    [(12, False, 24), (99, True, 32), (0, False, 32)],
)
def test_shots(
    shots, said, number, pretrained, cache_dir, tmp_path, monkeypatch, capsys
):
    """Of 16 images a class, whose number the first line says."""
    small_runs.stop_before_training(monkeypatch)
    config = small_runs.config(cache_dir, pretrained, **{"data.shots": shots})
    with pytest.raises(small_runs.StopError):
        small_runs.run(config, tmp_path)
    said_now = capsys.readouterr().err
    assert f"on {number} images of toy-both" in said_now
    fewer = (
        "fewer than 99 shots per class in the split 'finetune' of toy-both: taking 16 "
        "real and 16 fake"
    )
    assert (fewer in said_now) == said
    assert ("fewer than" in said_now) == said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "give the workdir of .* with --config.init_from=PATH"),
        ({"init_from": "/nowhere"}, "no checkpoints in /nowhere"),
        (
            {"model.backbone": "squeezenet"},
            "holds the backbone 'small', the config asks for 'squeezenet'",
        ),
        ({"trainable": "tail"}, "expected .head. or .all."),
        ({"batch_size": 7}, "not a multiple of the 2 devices"),
        ({"epochs": 0}, "epochs is 0: expected a whole number, 1 or more"),
        ({"patience": -1}, "patience is -1: expected a whole number, 1 or"),
        ({"seed": -1}, "seed is -1: expected a whole number, 0 to 2147483647"),
        ({"data.shots": -5}, "data.shots is -5: expected a whole number, 0"),
        ({"model.num_stages": 5}, "num_stages is 5: expected a whole number, 0 to 4"),
        ({"data.train_split": "test"}, "'test': expected 'train' or 'finetune'"),
        ({"data.dir": "/nowhere", "data.name": "folder"}, "/nowhere"),
    ],
)
def test_mistakes_of_fine_tuning(changes, message, pretrained, cache_dir, tmp_path):
    config = small_runs.config(cache_dir, pretrained, **changes)
    with pytest.raises(UserError, match=message):
        small_runs.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_backbone_may_go_on_at_another_size(pretrained, cache_dir, tmp_path):
    config = small_runs.config(cache_dir, pretrained, epochs=1, **{"data.size": 48})
    with pytest.warns(UserWarning, match="at 32x32 pixels, this run takes 48x48"):
        workdir = small_runs.run(config, tmp_path / "run")
    assert Run(workdir).best.preprocessing.size == 48
