"""The demo from end to end, on a few images; and its table on given figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs
from PIL import Image

from fdftnet_jax.run import Run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = [
    f"--config.{part}.{field}"
    for part in ("pretrain", "finetune")
    for field in (
        "epochs=2",
        "batch_size=8",
        "model.backbone=own_cnn:OwnCNN",
        "data.size=32",
        "data.toy_examples.train=8",
        "data.toy_examples.validation=8",
        "data.toy_examples.test=10",
        "data.toy_examples.finetune=8",
        *(f"{field}={value}" for field, value in small_runs.NO_AUGMENTATION.items()),
    )
] + [
    "--config.finetune.data.shots=4",
    "--config.finetune.model.num_blocks=1",
    "--config.finetune.model.num_stages=1",
]


def demo(workdir, cache, *arguments):
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return subprocess.run(
        [sys.executable, "-m", "experiments.demo", f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished demo of two seeds: (workdir, cache, process)."""
    workdir, cache = (tmp_path_factory.mktemp(name) for name in ("demo", "cache"))
    process = demo(workdir, cache, "--seeds=2", *SMALL)
    assert process.returncode == 0, process.stderr
    return workdir, cache, process


def test_summary(finished):
    workdir, _, _ = finished
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["data"] == {"old": "toy/upsampled", "new": "toy/blended"}
    assert (summary["seeds"], summary["shots_per_class"]) == (2, 4)
    assert summary["results"].keys() == {
        "before/old",
        "before/new",
        "after/old",
        "after/new",
    }
    for row in summary["results"].values():
        assert row["num_examples"] == 20
        for metric in ("accuracy", "auc"):
            by_seed = row[metric]["by_seed"]
            assert len(by_seed) == 2
            assert row[metric]["mean"] == pytest.approx(sum(by_seed) / 2)
            assert all(0 <= value <= 1 for value in by_seed)


def test_table_shows_the_summary(finished):
    workdir, _, process = finished
    results = json.loads((workdir / "summary.json").read_text())["results"]
    lines = process.stdout.splitlines()
    for title, detector in (
        ("pre-trained backbone", "before"),
        ("fine-tuned FDFtNet", "after"),
    ):
        (line,) = [line for line in lines if line.startswith(title)]
        figures = [float(word) for word in line.split() if word[0].isdigit()]
        assert figures == pytest.approx(
            [
                results[f"{detector}/{forgery}"][metric]["mean"]
                for forgery in ("old", "new")
                for metric in ("accuracy", "auc")
            ],
            abs=5e-4,
        )
    assert (
        max(len(line) for line in lines if not line.startswith(("written to", "/")))
        <= 80
    )


def test_figures_and_runs(finished):
    workdir, _, _ = finished
    for name in ("roc", "training_curves", "contact_sheet"):
        with Image.open(workdir / f"{name}.png") as image:
            assert min(image.size) > 200
    for seed in (0, 1):
        for run in ("base", "fdftnet"):
            assert len(Run(workdir / f"seed{seed}" / run).history()) == 2


def test_the_report_is_on_the_new_forgery_and_is_told_of(finished):
    workdir, _, process = finished
    path = workdir / "report.html"
    assert process.stdout.splitlines()[-1] == str(path)
    text = " ".join(path.read_text().split())
    assert "FDFtNet on own_cnn:OwnCNN, tested on 20 pictures" in text
    assert "(toy-blended, split &#39;test&#39;)" in text


def test_again_it_trains_nothing(finished):
    workdir, cache, _ = finished
    before = (workdir / "seed0" / "fdftnet" / "history.jsonl").stat()
    process = demo(workdir, cache, *SMALL)
    assert process.returncode == 0
    assert process.stderr.count("is finished") == 2
    after = (workdir / "seed0" / "fdftnet" / "history.jsonl").stat()
    assert after.st_mtime_ns == before.st_mtime_ns
