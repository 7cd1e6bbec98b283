"""Table 5 from end to end, on a small backbone and a few toy pictures."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_runs

from configs import table5 as config_file
from experiments import grid, table5
from fdftnet_jax.errors import Interrupted
from fdftnet_jax.reporting import paper
from fdftnet_jax.training import loop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RUNS = [f"toy/small/seed{seed}/{run}" for seed in (0, 1) for run in ("base", "fdftnet")]


def small_config(cache_dir):
    config = config_file.get_config()
    config.backbones = small_runs.BACKBONE
    config.seeds = 2
    small = small_runs.small(cache_dir) | small_runs.NO_AUGMENTATION
    config.both.update_from_flattened_dict(small)
    config.finetune.release_epoch = 0
    config.both.epochs = 1
    config.finetune.data.shots = 12
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_dir):
    """A grid that was stopped between two runs: (config, workdir, trainings, table)."""
    workdir = tmp_path_factory.mktemp("table5")
    config = small_config(cache_dir)
    (runs, write), trained = table5.prepare(config, workdir), []
    train = loop.train_and_evaluate

    def counting(config, directory):
        trained.append(directory.removeprefix(f"{workdir}/"))
        train(config, directory)

    def stop(outcomes):
        text = write(outcomes)
        if len(trained) == 2:
            raise Interrupted(15, f"stopped with {text.count('1 of 2')} rows")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_and_evaluate", counting)
        with pytest.raises(Interrupted, match="with 2 rows"):
            grid.execute(runs, workdir, stop)
        outcomes = grid.execute(runs, workdir)
        grid.execute(runs, workdir)
    return (
        config,
        workdir,
        trained,
        write(outcomes),
    )


def evaluations(workdir, run):
    paths = [
        workdir / f"toy/small/seed{seed}/{run}/evaluation/toy-both-test.json"
        for seed in (0, 1)
    ]
    return [json.loads(path.read_text()) for path in paths]


def test_no_training_is_repeated(finished):
    _, _, trained, _ = finished
    assert trained == RUNS


def test_the_table_has_the_numbers_of_the_evaluations(finished):
    _, workdir, _, text = finished
    assert (workdir / "table5.md").read_text() in text
    lines = [line.split(" | ") for line in text.splitlines() if "| small |" in line]
    with (workdir / "table5.csv").open() as file:
        rows = list(csv.DictReader(file))
    for line, row, detector, run in zip(
        lines, rows, ("baseline", "FDFtNet"), ("base", "fdftnet"), strict=True
    ):
        found = evaluations(workdir, run)
        assert line[:3] == ["| toy", "small", detector]
        assert line[5:] == ["18", "2 |"]
        for metric, cell in (("accuracy", line[3]), ("auc", line[4])):
            mean = np.mean([e["figures"][metric]["value"] for e in found])
            assert float(row[f"{metric}_mean"]) == pytest.approx(mean, rel=1e-12)
            assert cell.startswith(f"{100 * mean:.2f} ± ")
    assert "Toy pictures" in text


def test_a_cell_is_trained_on_its_data_and_fine_tuned_on_the_rest(finished):
    _, workdir, _, _ = finished
    for seed in (0, 1):
        cell = workdir / "toy" / "small" / f"seed{seed}"
        base, tuned = (
            json.loads((cell / run / "config.json").read_text())
            for run in ("base", "fdftnet")
        )
        assert base["seed"] == tuned["seed"] == seed
        assert tuned["init_from"] == str(cell / "base")
        assert (base["model"]["kind"], base["trainable"]) == ("classifier", "all")
        assert (tuned["model"]["kind"], tuned["trainable"]) == ("fdftnet", "head")
        splits = [part["data"]["train_split"] for part in (base, tuned)]
        assert splits == ["train", "finetune"]
        own = dict.fromkeys(("train_split", "shots", "replay"))
        assert base["data"] | own == tuned["data"] | own


def test_the_paper_s_figures_stand_beside(tmp_path, monkeypatch, cache_dir):
    monkeypatch.setattr(
        paper, "table5", lambda *key: {"accuracy": 12.5, "auc": len(key[2]) / 2}
    )
    config = small_config(cache_dir)
    runs, write = table5.prepare(config, tmp_path)
    text = write({run.name: grid.Outcome() for run in runs})
    assert "| toy | small | baseline | - | 12.50 | - | 4.00 | - | 0 of 2 |" in text
    assert "| toy | small | FDFtNet | - | 12.50 | - | 3.50 | - | 0 of 2 |" in text


def start(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", f"import small_runs; {code}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )


def test_a_failing_cell_is_told_of_and_the_others_are_there(finished, cache_dir):
    """As a command, in the folder of the finished grid."""
    config, workdir, _, _ = finished
    given = small_runs.small(cache_dir) | small_runs.NO_AUGMENTATION
    given["epochs"] = config.both.epochs
    ended = start(
        "from experiments import grid, table5; "
        "grid.command(table5.prepare, 'configs/table5.py', '')",
        "--config.backbones=small",
        "--config.datasets=toy,folder",
        "--config.data.folder.dir=/nowhere",
        "--config.finetune.data.shots=12",
        "--config.finetune.release_epoch=0",
        *[f"--config.both.{field}={value}" for field, value in given.items()],
        f"--workdir={workdir}",
    )
    assert ended.returncode == 2, ended.stderr
    reason = "expected a folder of images at '/nowhere', found nothing"
    assert f"- folder/small/seed0/base: {reason}" in ended.stdout
    assert "| toy | small | FDFtNet | " in ended.stdout
    assert "| folder | small | FDFtNet | - | - | - | 0 of 1 |" in ended.stdout
    # One seed has the interval over test images.
    assert "[ ] is the 95 % interval over test images (bootstrap)" in ended.stdout
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: 2 of 4 runs failed, first folder/small/seed0/base")
    assert "[3/4] folder/small/seed0/base" in ended.stderr
    assert "toy/small" not in ended.stderr
