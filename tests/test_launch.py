"""The experiments as commands. Each start takes seconds, so there are few."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def start(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("experiment", "arguments", "message"),
    [
        (
            "pretrain",
            ["--config.optimizer.learnig_rate=0.1"],
            "no config key 'optimizer.learnig_rate'; did you mean "
            "--config.optimizer.learning_rate?",
        ),
        (
            "pretrain",
            ["--config.epochs=many"],
            "epochs is 'many': expected a whole number",
        ),
        (
            "pretrain",
            ["--config=configs/pretrain.py:squeezenet"],
            "config argument 'squeezenet': expected BACKBONE,DATA",
        ),
        ("pretrain", ["--config=configs/pretrian.py"], "no config file"),
        ("finetune", [], "give the workdir of experiments.pretrain, or a file"),
        (
            "pretrain",
            [
                "--config=configs/pretrain.py:squeezenet,folder",
                "--config.data.dir=/nowhere",
            ],
            "/nowhere",
        ),
        ("evaluate", [], "no checkpoints in"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(experiment, arguments, message, tmp_path):
    workdir = tmp_path / "run"
    command = ["-m", f"experiments.{experiment}", *arguments, f"--workdir={workdir}"]
    ended = start(*command)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert message in ended.stderr
    assert not workdir.exists()


def test_debug_shows_the_traceback(tmp_path):
    ended = start("-m", "experiments.evaluate", f"--workdir={tmp_path}", "--debug")
    assert ended.returncode not in (0, 2)
    assert "Traceback (most recent call last)" in ended.stderr
    assert "UserError: no checkpoints in" in ended.stderr


def test_help_lists_the_flags_of_the_experiment():
    ended = start("-m", "experiments.pretrain", "--help")
    for text in ("Pre-trains a backbone", "--config", "--workdir", "--[no]debug"):
        assert text in ended.stdout


def test_evaluate_prints_what_it_wrote(pretrained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(pretrained, workdir)
    code = (
        "import small_runs; from experiments import evaluate, launch; "
        "launch.run(evaluate.main)"
    )
    ended = start("-c", code, f"--workdir={workdir}", "--split=all")
    assert ended.returncode == 0, ended.stderr
    assert "toy-both, all split: 100 images, checkpoint of step" in ended.stdout
    assert "accuracy" in ended.stdout and "of 50, " in ended.stdout
    for name in ("toy-both-all.json", "toy-both-all_scores.csv"):
        path = workdir / "evaluation" / name
        assert path.exists() and str(path) in ended.stdout
    warned = [line for line in ended.stderr.splitlines() if line]
    assert len(warned) == 1 and warned[0].startswith("warning: --split=all of toy")
