"""Table 5 of the paper: every backbone before and after fine-tuning, on every data set.

    python -m experiments.table5 --config=configs/table5.py [--workdir=runs/table5]

A cell pre-trains a backbone on a data set, scores it (baseline), fine-tunes FDFtNet on
the disjoint finetune split of the same data, and scores that. Prints the table and
writes WORKDIR/table5.md and .csv. The same command goes on where it stopped.
"""

from pathlib import Path

import ml_collections
from absl import flags

from experiments import grid, launch, phases

_WORKDIR = flags.DEFINE_string("workdir", "runs/table5", "Folder of the grid.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "List what is done and what is left.")

# What a cell scores, as the paper calls it: before and after fine-tuning.
DETECTORS = ("baseline", "FDFtNet")
# (data set, backbone) -> the runs of each seed, pre-training and fine-tuning.
Cells = dict[tuple[str, str], list[tuple[grid.Run, grid.Run]]]


def main() -> None:
    """Makes the cells that are left and prints the table."""
    config, workdir = flags.FLAGS.config, Path(_WORKDIR.value)
    cells = list_cells(config)
    # A seed after the other, so that a whole table is there early.
    by_seed = zip(*cells.values(), strict=True)
    runs = [run for cells_of_seed in by_seed for pair in cells_of_seed for run in pair]

    def write(outcomes: grid.Outcomes) -> str:
        return write_table(config, workdir, cells, outcomes)

    grid.make(runs, workdir, write, dry_run=_DRY_RUN.value)


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
    from fdftnet_jax.reporting import paper, tables

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
    text = tables.write(
        workdir / "table5",
        f"Table 5, recipe {config.recipe}",
        rows,
        toy=any(dataset == "toy" for dataset, _ in cells),
        failures=grid.failures(outcomes),
    )
    return f"{text}\nwritten to {workdir}: table5.md, table5.csv"


if __name__ == "__main__":
    launch.run(main, "configs/table5.py")
