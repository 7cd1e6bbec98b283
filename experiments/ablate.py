"""Varies one thing of FDFtNet and shows what it does to the scores.

    python -m experiments.ablate --config=configs/ablation/stages.py \
        [--workdir=runs/ablation]

A backbone is pre-trained for each seed, and FDFtNet is fine-tuned from it with each
value, on the same data. Prints a table and writes WORKDIR/<name>.md, .csv, .svg,
.png and .html. The same command goes on where it stopped.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from experiments import grid, phases
from fdftnet_jax.errors import UserError

BASELINE = "before fine-tuning"
# What a level is called -> the runs of all seeds; first the pre-trainings.
Cells = dict[str, list[grid.GridRun]]


def prepare(
    config: ml_collections.ConfigDict, workdir: Path
) -> tuple[Sequence[grid.GridRun], Callable[[grid.Outcomes], str]]:
    """The runs, a seed after the other, and what writes the results (see `grid`)."""
    cells = list_cells(config)
    by_seed = zip(*cells.values(), strict=True)
    runs = [run for runs_of_seed in by_seed for run in runs_of_seed]
    return runs, functools.partial(write_results, config, workdir, cells)


def list_levels(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
    """What the levels are called -> fields of `training/defaults.py` and their values.

    Raises:
      UserError: there is no such field, a value is not of its type, or the names do not
        fit the levels.
    """
    fields = config.varies.split("/")
    texts = phases.names(config.levels, "levels")
    called = phases.names(config.names, "names") if config.names else texts
    if len(called) != len(texts):
        raise UserError(
            f"expected a name for each of {len(texts)} levels, found {len(called)} "
            "names; give --config.names=A,B with as many, or --config.names= for none"
        )
    found = {}
    for name, text in zip(called, texts, strict=True):
        parts = text.split("/")
        if len(parts) != len(fields):
            raise UserError(
                f"levels has {text!r}: expected a value for each of "
                f"{' and '.join(fields)}, with slashes between them"
            )
        found[name] = {
            field: phases.read_value(field, part)
            for field, part in zip(fields, parts, strict=True)
        }
    return found


def list_cells(config: ml_collections.ConfigDict) -> Cells:
    """The runs of an ablation.

    Raises:
      UserError: something in the config does not exist.
    """
    from fdftnet_jax.models import registry

    registry.get_backbone(config.backbone)
    bases = [
        phases.pretraining(config, config.backbone, config.dataset, seed)
        for seed in phases.seeds(config)
    ]
    cells = {BASELINE: bases}
    for name, changes in list_levels(config).items():
        folder = ",".join(f"{f.split('.')[-1]}={v}" for f, v in changes.items())
        cells[name] = [
            phases.finetuning(config, base, folder, changes) for base in bases
        ]
    return cells


def write_results(
    config: ml_collections.ConfigDict,
    workdir: Path,
    cells: Cells,
    outcomes: grid.Outcomes,
) -> str:
    """Writes and draws what there is so far, and returns the table as Markdown."""
    from fdftnet_jax.reporting import ablation_plot, grid_report, page, plots, tables

    found = {name: grid.scores(outcomes, runs) for name, runs in cells.items()}
    rows = [
        tables.Row(
            {config.label: name}, found[name], len(runs), _published(config, runs[0])
        )
        for name, runs in cells.items()
    ]
    stem = workdir / config.name
    title = (
        f"{config.label}: {config.backbone} on {config.dataset}, recipe {config.recipe}"
    )
    toy, failures = config.dataset == "toy", grid.failures(outcomes)
    text = tables.write(stem, title, rows, toy=toy, failures=failures)
    figure = ablation_plot.figure(
        config.label,
        {name: found[name] for name in cells if name != BASELINE},
        found[BASELINE],
        log_axis=config.log_axis,
    )
    for kind in ("svg", "png"):
        plots.save(figure, f"{stem}.{kind}")
    drawn = page.Figure(
        plots.svg(figure),
        f"Accuracy and AUROC against {config.label}, the values of the table above.",
        "Points are means over seeds with their 95 % intervals; the dashed line is "
        "the network before fine-tuning.",
    )
    grid_report.write(
        stem,
        title,
        [
            f"What {config.label} does to FDFtNet: a network was trained, and FDFtNet "
            "fine-tuned from it with each value, on the same data. Higher is better, "
            "and 50 is chance."
        ],
        tables.cells(rows),
        notes=tables.notes(rows, toy=toy),
        failures=failures,
        config=config.to_json_best_effort(indent=2, sort_keys=True),
        figures=[drawn],
    )
    kinds = ("md", "csv", "svg", "png", "html")
    written = ", ".join(f"{config.name}.{kind}" for kind in kinds)
    return f"{text}\nwritten to {workdir}: {written}"


def _published(
    config: ml_collections.ConfigDict, run: grid.GridRun
) -> Mapping[str, float]:
    """The paper's results, where this is its ablation."""
    from fdftnet_jax.reporting import paper

    if not run.after or config.varies != "model.num_stages":
        return {}
    return paper.table6(config.dataset, config.backbone, run.config.model.num_stages)


if __name__ == "__main__":
    grid.command(prepare, "configs/ablation/table6.py", "runs/ablation")
