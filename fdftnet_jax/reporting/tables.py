"""Tables of scores over several seeds: Markdown for people, CSV for programs."""

import csv
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from fdftnet_jax import files

# Of an evaluation's JSON -> in a table.
METRICS = {"accuracy": "accuracy, %", "auc": "AUROC, %"}
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
      mean: of the values.
      half_width: of the 95 % interval around it, None for a single value.
    """

    mean: float
    half_width: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One detector on one data set.

    Attributes:
      labels: column -> text; the same columns in every row of a table.
      scores: what each seed's evaluation holds (see `evaluation.results`); seeds
        that have failed, or are not there yet, are missing.
      seeds: how many were asked for.
      paper: metric -> the published figure in percent, empty where there is none.
    """

    labels: Mapping[str, str]
    scores: Sequence[Mapping[str, Any]]
    seeds: int
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def values(self, metric: str) -> list[float]:
        """A metric of each seed that has one, in [0, 1]."""
        return [figure(scores, metric)[0] for scores in self.scores]


def figure(
    scores: Mapping[str, Any], metric: str
) -> tuple[float, tuple[float, float] | None]:
    """A metric in an evaluation's JSON, and its interval over test images, if any.

    Args:
      scores: as `evaluation.results` describes them.
      metric: its name.
    """
    found = scores["figures"][metric]
    interval = found["interval"]
    return found["value"], None if interval is None else (interval[0], interval[1])


def interval(
    scores: Sequence[Mapping[str, Any]], metric: str
) -> tuple[float, float, str] | None:
    """The 95 % interval of the mean over seeds, None where there is none.

    Args:
      scores: what each seed's evaluation holds.
      metric: its name.

    Returns:
      Its ends, and over what it is: 'seeds', or 'images' for the bootstrap over test
      images of a single seed.
    """
    if len(scores) == 1:
        bootstrap = figure(scores[0], metric)[1]
        return None if bootstrap is None else (*bootstrap, "images")
    if not scores:
        return None
    estimate = over_seeds([figure(found, metric)[0] for found in scores])
    half = estimate.half_width or 0.0
    return estimate.mean - half, estimate.mean + half, "seeds"


def over_seeds(values: npt.ArrayLike) -> Estimate:
    """The mean of independent values, with Student's 95 % interval of that mean.

    Args:
      values: [n], n >= 1.

    Raises:
      ValueError: there is none.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not found.size:
        raise ValueError(f"values must be a vector, found {values!r}.")
    if found.size == 1:
        return Estimate(float(found[0]), None)
    half = stats.t.ppf((1 + _LEVEL) / 2, found.size - 1) * stats.sem(found)
    return Estimate(float(found.mean()), float(half))


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The heads of the columns and the rows as text, scores in percent."""
    published = any(row.paper for row in rows)
    columns = [*rows[0].labels]
    for title in METRICS.values():
        columns += [title, *["paper"] * published]
    lines = [[*columns, "test images", "seeds"]]
    for row in rows:
        line = [*row.labels.values()]
        for metric in METRICS:
            line.append(percent(row.values(metric)) + _of_images(row, metric))
            if published:
                theirs = row.paper.get(metric)
                line.append("-" if theirs is None else f"{theirs:.2f}")
        found = len(row.scores)
        seeds = str(found) if found == row.seeds else f"{found} of {row.seeds}"
        lines.append([*line, _images(row) or "-", seeds])
    return lines


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, scores in percent."""
    return _markdown(cells(rows))


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of heads and rows; nothing of nothing."""
    if not lines:
        return ""
    escaped = [[text.replace("|", "\\|") for text in line] for line in lines]
    escaped.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV, all scores in [0, 1] and the paper's too; empty for none.

    `<metric>_interval` says what `_low` and `_high` are over: 'seeds' or 'images'.
    """
    lines = []
    for row in rows:
        line: dict[str, Any] = {
            **row.labels,
            "seeds": len(row.scores),
            "test_images": _images(row),
        }
        for metric in METRICS:
            values, theirs = row.values(metric), row.paper.get(metric)
            low, high, over = interval(row.scores, metric) or (None, None, None)
            line |= {
                f"{metric}_mean": over_seeds(values).mean if values else None,
                f"{metric}_low": low,
                f"{metric}_high": high,
                f"{metric}_interval": over,
                f"{metric}_paper": None if theirs is None else round(theirs / 100, 4),
            }
        lines.append(line)
    return _csv(lines)


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0] if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def write(
    stem: str | os.PathLike[str],
    title: str,
    rows: Sequence[Row],
    *,
    toy: bool,
    failures: Mapping[str, str],
) -> str:
    """Writes `<stem>.md` and `<stem>.csv`.

    Args:
      stem: path without suffix.
      title: of the table.
      rows: at least one.
      toy: whether some are on toy pictures.
      failures: run -> why it failed, told below the table.

    Returns:
      The Markdown.
    """
    text = f"# {title}\n\n{markdown(rows)}\n{' '.join(notes(rows, toy=toy))}\n"
    return _write(stem, text, csv_text(rows), failures)


def notes(rows: Sequence[Row], *, toy: bool) -> list[str]:
    """Notes for a reader of the table, a sentence or two each."""
    found = []
    if any(len(row.scores) > 1 for row in rows):
        found.append("± is the 95 % interval of the mean over seeds (Student's t).")
    if any(len(row.scores) == 2 for row in rows):
        found.append("From two seeds it is very wide: give three or more.")
    if any(len(row.scores) == 1 for row in rows):
        found.append("1 seed: how much another would differ is not known.")
    if any(_of_images(row, metric) for row in rows for metric in METRICS):
        found.append("[ ] is the 95 % interval over test images (bootstrap).")
    if toy:
        found.append(
            "Toy pictures: a figure on them says nothing about real forgeries."
        )
    return found


def _write(
    stem: str | os.PathLike[str], text: str, table: str, failures: Mapping[str, str]
) -> str:
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    if failures:
        text += "\nFailed:\n\n"
        text += "".join(f"- {name}: {reason}\n" for name, reason in failures.items())
    files.write_atomic(stem.with_name(f"{stem.name}.md"), text)
    files.write_atomic(stem.with_name(f"{stem.name}.csv"), table)
    return text


def write_records(
    stem: str | os.PathLike[str],
    title: str,
    rows: Sequence[Mapping[str, str]],
    notes: str,
    failures: Mapping[str, str],
    more: Sequence[Mapping[str, str]],
) -> str:
    """Writes `<stem>.md` and `<stem>.csv` of rows that are text already.

    Args:
      stem: path without suffix.
      title: of the table.
      rows: column -> text, the same columns in each; none is a table to come.
      notes: below the table.
      failures: as for `write`.
      more: rows of a second table, below the first in the Markdown; none without one.

    Returns:
      The Markdown.
    """
    table, second = (
        _markdown([[*some[0]], *([*row.values()] for row in some)] if some else [])
        for some in (rows, more)
    )
    if more:
        notes = f"{notes}\n\n{second}"
    return _write(stem, f"# {title}\n\n{table}\n{notes}\n", _csv(rows), failures)


def percent(values: Sequence[float]) -> str:
    """The mean over seeds in percent, with its interval where there are several."""
    if not values:
        return "-"
    estimate = over_seeds(values)
    text = f"{100 * estimate.mean:.2f}"
    if estimate.half_width is None:
        return text
    return f"{text} ± {100 * estimate.half_width:.2f}"


def _of_images(row: Row, metric: str) -> str:
    """The interval of a single seed, in percent."""
    low, high, over = interval(row.scores, metric) or (0.0, 0.0, "")
    return f" [{100 * low:.2f}, {100 * high:.2f}]" if over == "images" else ""


def _images(row: Row) -> str:
    """The number of test images, where the seeds agree on it."""
    numbers = {scores["num_examples"] for scores in row.scores}
    return str(numbers.pop()) if len(numbers) == 1 else ""
