"""An ablation from end to end, on a small backbone and a few toy pictures."""

import csv
import json

import pytest
import small_runs
from PIL import Image
from test_table5 import start

from configs.ablation import base as config_file
from configs.ablation import table6
from experiments import ablate, grid
from fdftnet_jax.run import Run

pytestmark = pytest.mark.slow


def small_config(cache_dir):
    config = config_file.get_config("ours", "model.num_stages", "0,1")
    config.backbone = small_runs.BACKBONE
    config.seeds = 1
    config.label = "M, stages"
    small = small_runs.small(cache_dir) | small_runs.NO_AUGMENTATION
    config.both.update_from_flattened_dict(small)
    config.finetune.release_epoch = 0
    config.both.epochs = 1
    config.finetune.data.shots = 12
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_dir):
    """A finished ablation of two levels: (config, workdir, table)."""
    workdir = tmp_path_factory.mktemp("ablation")
    config = small_config(cache_dir)
    runs, write = ablate.prepare(config, workdir)
    return config, workdir, write(grid.execute(runs, workdir))


def test_each_level_is_trained_from_the_backbone_of_its_seed(finished):
    _, workdir, _ = finished
    folder = workdir / "toy" / "small" / "seed0"
    names = {path.name for path in folder.iterdir()}
    assert names == {"base", "num_stages=0", "num_stages=1"}
    for stages in (0, 1):
        run = folder / f"num_stages={stages}"
        config = json.loads((run / "config.json").read_text())
        assert config["model"]["num_stages"] == stages
        assert config["init_from"] == str(folder / "base")
        [row] = Run(run).history()
        assert sum(name.startswith("gamma") for name in row) == stages


def test_the_table_has_the_numbers_of_the_evaluations(finished):
    _, workdir, text = finished
    header = "| M, stages | accuracy, % | AUROC, % | test images | seeds |"
    assert header in text
    with (workdir / "ours.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["M, stages"] for row in rows] == ["before fine-tuning", "0", "1"]
    for row, run in zip(rows, ("base", "num_stages=0", "num_stages=1"), strict=True):
        path = workdir / f"toy/small/seed0/{run}/evaluation/toy-both-test.json"
        found = json.loads(path.read_text())["figures"]
        for metric in ("accuracy", "auc"):
            expected = found[metric]["value"]
            assert float(row[f"{metric}_mean"]) == pytest.approx(expected, rel=1e-12)


def test_figures(finished):
    _, workdir, _ = finished
    with Image.open(workdir / "ours.png") as image:
        assert min(image.size) > 500
    svg = (workdir / "ours.svg").read_text()
    for text in ("M, stages", "Accuracy", "AUROC", "before fine-tuning, mean"):
        assert text in svg


def test_another_ablation_in_the_folder_finds_what_is_there(finished, cache_dir):
    _, workdir, _ = finished
    other = small_config(cache_dir)
    other.name, other.levels = "other", "0,1,2"
    runs, _ = ablate.prepare(other, workdir)
    assert "4 runs: 3 done, 1 left" in grid.plan(runs, workdir)


def test_the_paper_s_figures_stand_beside_where_they_belong():
    config = table6.get_config()
    for dataset, expected in (("toy", {}), ("folder", {})):
        config.dataset = dataset
        for runs in ablate.list_cells(config).values():
            assert ablate._published(config, runs[0]) == expected
    cells = ablate.list_cells(config)
    config.dataset = "deepfakes"
    found = {name: ablate._published(config, runs[0]) for name, runs in cells.items()}
    assert found == {
        "before fine-tuning": {},
        "without FTT": {"accuracy": 94.56, "auc": 98.89},
        "with FTT": {"accuracy": 97.02, "auc": 99.37},
    }
    config.varies = "model.num_blocks"
    assert ablate._published(config, cells["with FTT"][0]) == {}


def test_as_a_command(finished, cache_dir):
    """It finds all runs of the finished ablation, and trains nothing."""
    config, workdir, text = finished
    given = small_runs.small(cache_dir) | small_runs.NO_AUGMENTATION
    given["epochs"] = config.both.epochs
    arguments = [
        "--config=configs/ablation/stages.py",
        "--config.backbone=small",
        "--config.levels=0,1",
        "--config.seeds=1",
        "--config.finetune.data.shots=12",
        "--config.finetune.release_epoch=0",
        *[f"--config.both.{field}={value}" for field, value in given.items()],
        f"--workdir={workdir}",
    ]
    code = (
        "from experiments import ablate, grid; "
        "grid.command(ablate.prepare, 'configs/ablation/table6.py', '')"
    )
    ended = start(code, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line for line in ended.stdout.splitlines() if line[:2] == "| "][1:] == (
        rows[1:]
    )
    for kind in ("md", "csv", "svg", "png", "html"):
        assert (workdir / f"stages.{kind}").exists()
    (workdir / "stages.md").unlink()
    ended = start(code, *arguments, "--dry_run")
    assert ended.returncode == 0 and "3 runs: 3 done, 0 left" in ended.stdout
    assert not (workdir / "stages.md").exists()
