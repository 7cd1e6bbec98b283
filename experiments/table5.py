"""Table 5 of the paper: every backbone before and after fine-tuning, on every data set.

    python -m experiments.table5 --config=configs/table5.py [--workdir=runs/table5]

A cell pre-trains a backbone on a data set, scores it (baseline), fine-tunes FDFtNet on
the disjoint finetune split of the same data, and scores that. Prints the table and
writes WORKDIR/table5.md, .csv and .html. The same command goes on where it stopped.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections

from experiments import grid, phases

# What a cell scores, as the paper calls it: before and after fine-tuning.
DETECTORS = ("baseline", "FDFtNet")
# (data set, backbone) -> the runs of each seed, pre-training and fine-tuning.
Cells = dict[tuple[str, str], list[tuple[grid.GridRun, grid.GridRun]]]


def prepare(
    config: ml_collections.ConfigDict, workdir: Path
) -> tuple[Sequence[grid.GridRun], Callable[[grid.Outcomes], str]]:
    """The runs, a seed after the other, and what writes the table (see `grid`)."""
    cells = list_cells(config)
    by_seed = zip(*cells.values(), strict=True)
    runs = [run for cells_of_seed in by_seed for pair in cells_of_seed for run in pair]
    return runs, functools.partial(write_table, config, workdir, cells)


def list_cells(config: ml_collections.ConfigDict) -> Cells:
    """The runs of a table.

    Raises:
      UserError: a backbone, data set, recipe or number of seeds does not exist.
    """
    from fdftnet_jax.models import registry

    backbones = phases.names(config.backbones, "backbones")
    for backbone in backbones:
        registry.get_backbone(backbone)
    cells: Cells = {}
    for dataset in phases.names(config.datasets, "datasets"):
        for backbone in backbones:
            cells[dataset, backbone] = []
            for seed in phases.seeds(config):
                base = phases.pretraining(config, backbone, dataset, seed)
                tuned = phases.finetuning(config, base, "fdftnet")
                cells[dataset, backbone].append((base, tuned))
    return cells


def write_table(
    config: ml_collections.ConfigDict,
    workdir: Path,
    cells: Cells,
    outcomes: grid.Outcomes,
) -> str:
    """Writes what there is so far, and returns the table as Markdown."""
    from fdftnet_jax.reporting import grid_report, paper, tables

    rows = [
        tables.Row(
            {"data": dataset, "backbone": backbone, "detector": detector},
            grid.scores(outcomes, runs),
            len(runs),
            paper.table5(dataset, backbone, detector),
        )
        for (dataset, backbone), pairs in cells.items()
        for detector, runs in zip(DETECTORS, zip(*pairs, strict=True), strict=True)
    ]
    stem, title = workdir / "table5", f"Table 5, recipe {config.recipe}"
    toy = any(dataset == "toy" for dataset, _ in cells)
    failures = grid.failures(outcomes)
    text = tables.write(stem, title, rows, toy=toy, failures=failures)
    grid_report.write(
        stem,
        title,
        [
            "Detectors of forged pictures on several data sets. 'baseline' is a "
            "network that was trained on the data set; 'FDFtNet' was then fine-tuned "
            "from it on other images of the same data. Higher is better, and 50 is "
            "chance."
        ],
        tables.cells(rows),
        notes=tables.notes(rows, toy=toy),
        failures=failures,
        config=config.to_json_best_effort(indent=2, sort_keys=True),
        text_columns=3,
        words={"paper": "The figure that the paper's Table 5 gives."},
    )
    return f"{text}\nwritten to {workdir}: table5.md, table5.csv, table5.html"


if __name__ == "__main__":
    grid.command(prepare, "configs/table5.py", "runs/table5")
