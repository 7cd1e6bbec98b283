"""Compares ways to adapt a pre-trained backbone to a new forgery.

    python -m experiments.compare --config=configs/compare.py:xception,folder \
        --config.old.dir=OLD --config.new.dir=NEW [--workdir=runs/compare]

The same data, the same number of epochs, the same selection on validation for every
method; each is scored on the test splits of the new and of the old forgery. Prints a
table and writes WORKDIR/compare.md, .csv and .html. The same command goes on where it
stopped. With `--config.start=imagenet` every method starts from published weights
instead of a backbone that is pre-trained on the old forgery; with
`--config.shots=10,50,200` each method learns from as many new images of each class, and
a figure shows what more of them are worth.
"""

import csv
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import grid, phases
from fdftnet_jax.data import splits
from fdftnet_jax.errors import UserError, counted
from fdftnet_jax.training import defaults

_FULL = {
    "model.kind": "linear",
    "model.taps": False,
    "model.regression": False,
    "trainable": "all",
    "release_epoch": 0,
}
_FROZEN = {"model.regression": False, "trainable": "head", "release_epoch": 0}
# Method -> what it changes in configs/finetune.py.
METHODS: dict[str, dict[str, Any]] = {
    # The default; the paper's backbones are released after two epochs, more slowly than
    # the rest.
    "fdftnet": {},
    # Without the regression that the recipe from ImageNet's weights adds.
    "no_regression": {"model.regression": False},
    # All of the backbone under a new linear layer, at the same rates.
    "full_finetune": _FULL,
    # Section 4.1: learning rate, batch, no warm-up; the backbone frozen.
    "paper": {},
    # The backbone frozen to the end.
    "frozen": _FROZEN,
    "linear_probe": {"model.kind": "linear", "model.taps": False, **_FROZEN},
    # By logistic regression on many depths: see `defaults.probe`.
    "feature_probe": {},
    # Full fine-tuning with a pull to the pre-trained weights.
    "l2_sp": {**_FULL, "optimizer.l2_sp": 0.01},
    # The same network as full fine-tuning, from new weights, all at one rate.
    "scratch": {**_FULL, "new_weights": True, "optimizer.backbone_rate": 1.0},
}
# What the others are measured against.
REFERENCE = "full_finetune"
OLD, NEW = "old", "new"
BASE = "pre-trained"
# What the words of the table mean; together the note below it.
_NOTES = {
    "±": "± is the 95 % interval of the mean over seeds (Student's t).",
    "forgetting": "Forgetting is the AUROC on the old forgery that the pre-trained "
    "backbone had and the method has not.",
    f"against {REFERENCE}": f"Against {REFERENCE} with the same replay: the difference "
    "in AUROC, mean over the seeds that both have, with its 95 % bootstrap interval "
    "over the test images.",
}
_UNSEEN = (
    "Generators that were held out in turn: the AUROC of their fakes against all real "
    "images of the test split, before the adaptation, after one without them and after "
    "one with them."
)


class Cell(NamedTuple):
    """A row of the table.

    Attributes:
      method: of `METHODS`, or `BASE`.
      replay: replayed images per class.
      held_out: a generator that is left out of the training, '' for none.
      shots: new images per class, at most; 0 for as many as the method's config says.
    """

    method: str
    replay: int = 0
    held_out: str = ""
    shots: int = 0

    @property
    def name(self) -> str:
        """What the folders of its runs are called."""
        name = self.method + f"-replay{self.replay}" * (self.replay > 0)
        name += f"-shots{self.shots}" * (self.shots > 0)
        return name + f"-without-{self.held_out}" * bool(self.held_out)


# The runs of each, a seed after the other; first the pre-trainings.
Cells = dict[Cell, list[grid.GridRun]]


def prepare(
    config: ml_collections.ConfigDict, workdir: Path
) -> tuple[Sequence[grid.GridRun], Callable[[grid.Outcomes], str]]:
    """The runs, a seed after the other, and what writes the table (see `grid`)."""
    cells = list_cells(config)
    longest = max(map(len, cells.values()))
    runs = [
        cell[seed]
        for seed in range(longest)
        for cell in cells.values()
        if seed < len(cell)
    ]
    return runs, functools.partial(write_table, config, workdir, cells)


def list_cells(config: ml_collections.ConfigDict) -> Cells:
    """The runs of a comparison.

    Raises:
      UserError: no seed of any method, or replays or shots that are no numbers.
    """
    from fdftnet_jax.models import registry

    registry.get_backbone(config.backbone)
    replays = _numbers(config.replays, "replays")
    shots = _numbers(config.shots, "shots", least=1) if config.shots else [0]
    seeds = max(config.seeds.values())
    if seeds < 1 or min(config.seeds.values()) < 0:
        raise UserError(
            "expected a number of seeds for each method, found "
            f"{dict(config.seeds)}; give for example --config.seeds.fdftnet=3"
        )
    cells: Cells = {}
    if not config.start:
        cells[Cell(BASE)] = [_pretraining(config, seed) for seed in range(seeds)]
    elif any(replays) and not config.old.get("dir"):
        raise UserError(
            f"with start={config.start} the old forgery is a folder to replay: give "
            "--config.old.dir=PATH, or --config.replays=0"
        )
    held_out = ("", *splits.held_out(config.hold_out))
    for replay, number, method, left_out in itertools.product(
        replays, shots, METHODS, held_out
    ):
        cell = Cell(method, replay, left_out, number)
        if seeds := config.seeds[method]:
            cells[cell] = [_adaptation(config, cell, seed) for seed in range(seeds)]
    return cells


def _numbers(text: str, flag: str, least: int = 0) -> list[int]:
    parts = phases.names(text, flag)
    for part in parts:
        if not part.isdecimal() or int(part) < least:
            raise UserError(
                f"{flag} has {part!r}: expected whole numbers from {least} with commas "
                f"between them; give for example --config.{flag}=200,50"
            )
    return [int(part) for part in parts]


def _pretraining(config: ml_collections.ConfigDict, seed: int) -> grid.GridRun:
    made = phases.phase_config(
        config, "pretrain", config.backbone, config.old.name, seed, _data(config.old)
    )
    return grid.GridRun(_base(seed), made, scored=_scored(config))


def _base(seed: int) -> str:
    return f"seed{seed}/base"


def _adaptation(
    config: ml_collections.ConfigDict, cell: Cell, seed: int
) -> grid.GridRun:
    config = config.copy_and_resolve_references()
    if cell.method == "paper":
        config.recipe = "paper"
    elif config.start == "imagenet":
        config.recipe = "imagenet"
    changes = {
        **_data(config.new),
        **METHODS[cell.method],
        **(defaults.probe(config.backbone) if cell.method == "feature_probe" else {}),
        "data.replay": cell.replay,
        "data.held_out": cell.held_out or None,
        "data.shots": cell.shots or None,
    }
    # New weights need the pre-training for its data alone.
    after = _base(seed) if cell.replay or cell.method != "scratch" else ""
    if config.start:
        after = ""
        changes["init_from"] = "" if cell.method == "scratch" else config.start
        if cell.replay:
            changes["data.replay_dir"] = config.old.dir
    made = phases.phase_config(
        config, "finetune", config.backbone, config.new.name, seed, changes
    )
    return grid.GridRun(f"seed{seed}/{cell.name}", made, after, _scored(config))


def _data(fields: ml_collections.ConfigDict) -> dict[str, Any]:
    return {f"data.{name}": value for name, value in phases.given(fields)}


def _scored(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
    """Both forgeries, split as they are trained on."""
    scored: dict[str, dict[str, Any]] = {NEW: {}, OLD: {}}
    for title, fields in ((NEW, config.new), (OLD, config.old)):
        for dotted, value in phases.given(fields):
            *sections, name = dotted.split(".")
            section = scored[title]
            for part in sections:
                section = section.setdefault(part, {})
            section[name] = value
    return scored


def write_table(
    config: ml_collections.ConfigDict,
    workdir: Path,
    cells: Cells,
    outcomes: grid.Outcomes,
) -> str:
    """Writes what there is so far, and returns the table as Markdown."""
    from fdftnet_jax.reporting import grid_report, page, tables, wording

    rows = [
        _row(cell, cells, outcomes)
        for cell, runs in cells.items()
        if not cell.held_out and any(OLD in outcomes[run.name].scores for run in runs)
    ]
    unseen = [
        _unseen_row(cell, cells, outcomes)
        for cell, runs in cells.items()
        if cell.held_out and any(NEW in outcomes[run.name].scores for run in runs)
    ]
    stem, failures = workdir / "compare", grid.failures(outcomes)
    notes = " ".join(_NOTES.values())
    text = tables.write_records(stem, "Comparison", rows, notes, failures, unseen)
    second = [[*unseen[0]], *([*row.values()] for row in unseen)] if unseen else []
    toy = "toy" in (config.old.name, config.new.name)
    grid_report.write(
        stem,
        "Ways to adapt a detector to a new forgery",
        [
            _opening(config)
            + " in several ways, with the same images and epochs. Higher is better, "
            "and 50 is chance; forgetting is what was lost on the old forgery."
        ],
        [[*rows[0]], *([*row.values()] for row in rows)] if rows else [],
        notes=[*[wording.TOY] * toy, *_drops(unseen)],
        failures=failures,
        config=config.to_json_best_effort(indent=2, sort_keys=True),
        figures=_plots(cells, outcomes),
        words=_NOTES,
        more=page.Table(_UNSEEN, second[0], second[1:], 3) if second else None,
    )
    return f"{text}\nwritten to {workdir}: compare.md, compare.csv, compare.html"


def _opening(config: ml_collections.ConfigDict) -> str:
    old, new = _called(config.old), _called(config.new)
    if config.start:
        return (
            f"{config.backbone} with the weights of {config.start} was adapted to a "
            f"forgery ('new', {new}), with or without pictures of another ('old', "
            f"{old}),"
        )
    return (
        f"{config.backbone} was trained to know one forgery ('old', {old}) and then "
        f"adapted to another ('new', {new})"
    )


def _plots(cells: Cells, outcomes: grid.Outcomes) -> list[Any]:
    """New against old of the runs that are scored on both; new by number of images."""
    from fdftnet_jax.reporting import comparison_plot, page, plots, tables

    most = max(cell.shots for cell in cells)
    points = []
    curves: dict[tuple[str, bool], dict[int, Any]] = {}
    for cell, runs in cells.items():
        done = [run for run in runs if OLD in outcomes[run.name].scores]
        if cell.held_out or not done:
            continue
        old, new = (
            [tables.figure(s, "auc")[0] for s in grid.scores(outcomes, done, title)]
            for title in (OLD, NEW)
        )
        if cell.method == BASE or cell.shots == most:
            points.append(comparison_plot.Point(cell.method, cell.replay > 0, old, new))
        if cell.shots:
            curve = curves.setdefault((cell.method, cell.replay > 0), {})
            curve[cell.shots] = grid.scores(outcomes, done, NEW)
    figures = []
    if points:
        figures.append(
            page.Figure(
                plots.svg(comparison_plot.figure(points)),
                comparison_plot.in_words(points),
                "What is learned of the new forgery against what is kept of the old. "
                "Filled: with replay. Small dots are single seeds.",
            )
        )
    if curves:
        lines = [
            comparison_plot.Curve(method, replayed, found)
            for (method, replayed), found in curves.items()
        ]
        figures.append(
            page.Figure(
                plots.svg(comparison_plot.curves(lines)),
                comparison_plot.curves_in_words(lines),
                "AUROC on the new forgery by the number of its images of each class "
                "that were asked for. A line is the 95 % interval over the seeds, or "
                "over the test images where there is one seed.",
            )
        )
    return figures


def _unseen_row(cell: Cell, cells: Cells, outcomes: grid.Outcomes) -> dict[str, str]:
    """How the fakes of a generator fare that a method was not trained with."""
    from fdftnet_jax.reporting import tables

    def of_generator(cell: Cell) -> list[float]:
        scores = grid.scores(outcomes, cells.get(cell, []), NEW)
        found = [of["generators"].get(left_out) for of in scores]
        return [of["auc"]["value"] for of in found if of]

    left_out = cell.held_out
    held_out = of_generator(cell)
    before = of_generator(Cell(BASE))
    change = np.mean(held_out) - np.mean(before) if before and held_out else None
    return {
        "method": cell.method,
        "replay": str(cell.replay or "-"),
        "generator": left_out,
        "before: AUROC, %": tables.percent(before),
        "held out: AUROC, %": tables.percent(held_out),
        "change, %": "-" if change is None else f"{100 * change:+.1f}",
        "trained with: AUROC, %": tables.percent(
            of_generator(cell._replace(held_out=""))
        ),
        "seeds": str(len(held_out)),
    }


def _drops(rows: Sequence[dict[str, str]]) -> list[str]:
    """A sentence for each generator that a method knows less well than before it."""
    return [
        f"{row['method']} lost on what it was not trained with: fakes of "
        f"{row['generator']} had an AUROC of {row['before: AUROC, %']} % before it, "
        f"and {row['held out: AUROC, %']} % after"
        + f" (with replay of {row['replay']})"
        * (row["replay"] != "-")
        for row in rows
        if row["change, %"] != "-" and float(row["change, %"]) < 0
    ]


def _called(fields: ml_collections.ConfigDict) -> str:
    """A short name of the data of a forgery."""
    return Path(fields.get("dir") or fields.name).name


def _row(cell: Cell, cells: Cells, outcomes: grid.Outcomes) -> dict[str, str]:
    from fdftnet_jax.reporting import tables

    runs = cells[cell]
    done = [run for run in runs if OLD in outcomes[run.name].scores]

    def of(title: str, metric: str, runs: Sequence[grid.GridRun] = done) -> list[float]:
        found = grid.scores(outcomes, runs, title)
        return [tables.figure(scores, metric)[0] for scores in found]

    before = {
        run.config.seed: of(OLD, "auc", [run])[0]
        for run in cells.get(Cell(BASE), [])
        if OLD in outcomes[run.name].scores
    }
    forgotten = [
        before[run.config.seed] - of(OLD, "auc", [run])[0]
        for run in done
        if run.config.seed in before
    ]
    minutes = [outcomes[run.name].seconds / 60 for run in done]
    row = {"method": cell.method, "replay": str(cell.replay or "-")}
    if any(other.shots for other in cells):
        row["images per class, at most"] = str(cell.shots or "-")
    row |= {
        "new: accuracy, %": tables.percent(of(NEW, "accuracy")),
        "new: AUROC, %": tables.percent(of(NEW, "auc")),
        "old: accuracy, %": tables.percent(of(OLD, "accuracy")),
        "old: AUROC, %": tables.percent(of(OLD, "auc")),
        "forgetting, %": "-",
    }
    if forgotten and cell.method != BASE:
        row["forgetting, %"] = tables.percent(forgotten)
    for title in (NEW, OLD):
        row[f"{title}: against {REFERENCE}, %"] = _against(title, cell, cells, outcomes)
    row["trained"] = f"{_trained(outcomes, done):,}"
    row["minutes"] = f"{np.mean(minutes):.1f}"
    row["seeds"] = f"{len(done)}" + f" of {len(runs)}" * (len(done) < len(runs))
    return row


def _trained(outcomes: grid.Outcomes, runs: Sequence[grid.GridRun]) -> int:
    """The number of parameters that a method trains."""
    (found,) = {outcomes[run.name].trained_parameters for run in runs}
    return found


def _against(title: str, cell: Cell, cells: Cells, outcomes: grid.Outcomes) -> str:
    """The difference in AUROC from the reference, on the seeds that both have."""
    from fdftnet_jax.evaluation import intervals

    reference = cell._replace(method=REFERENCE)
    if cell.method in (BASE, REFERENCE) or reference not in cells:
        return "-"
    pairs = [
        (outcomes[own.name].files[title], outcomes[other.name].files[title])
        for own, other in zip(cells[cell], cells[reference], strict=False)
        if title in outcomes[own.name].files and title in outcomes[other.name].files
    ]
    if not pairs:
        return "-"
    read = [[_scores(path) for path in pair] for pair in pairs]
    labels, groups, _ = read[0][0]
    if any((found[0], found[1]) != (labels, groups) for pair in read for found in pair):
        return "other images"
    own, other = (np.stack([pair[k][2] for pair in read]) for k in (0, 1))
    found = intervals.paired_bootstrap(labels, own, other, groups)
    low, high = found["interval"]
    return (
        f"{100 * found['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), "
        f"{counted(len(pairs), 'seed')}"
    )


def _scores(json_path: Path) -> tuple[list[int], list[str], np.ndarray]:
    """Labels [n], groups [n] and logits [n, 2] of an evaluation, sorted by path."""
    path = json_path.with_name(f"{json_path.stem}_scores.csv")
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    logits = np.array([[0.0, float(row["logit"])] for row in rows])
    labels = [int(row["label"]) for row in rows]
    return labels, [row["group"] for row in rows], logits


if __name__ == "__main__":
    grid.command(prepare, "configs/compare.py:squeezenet,toy", "runs/compare")
