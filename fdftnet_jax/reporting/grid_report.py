"""The page of a grid of runs: a table, its plot and how it was made, as HTML."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fdftnet_jax.evaluation import scoring
from fdftnet_jax.reporting import page, wording

# What the tables of grids call by these words.
_WORDS = {
    "accuracy": "The share of the test images that are called what they are, where a "
    "score of 0.5 or more is called fake, in percent.",
    "AUROC": f"{wording.METRICS['auc'][1]} Here in percent.",
    "seeds": "How often the whole of it was repeated from other random numbers: new "
    "layers, order of the images, augmentation.",
    "interval over seeds": "Of the mean, by Student's t: where other seeds would put "
    "it. It tells nothing of other images.",
    "interval over images": "Percentile bootstrap over the test images. It tells "
    "nothing of another training.",
}


def write(
    stem: str | os.PathLike[str],
    title: str,
    about: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    notes: Sequence[str],
    failures: Mapping[str, str],
    config: str,
    text_columns: int = 1,
    figures: Sequence[page.Figure] = (),
    words: Mapping[str, str] | None = None,
    more: page.Table | None = None,
) -> Path:
    """Writes `<stem>.html`.

    Args:
      stem: path without suffix.
      title: of the page.
      about: what was done, a paragraph each.
      lines: the heads of the table and its rows; may be empty.
      notes: what a reader should know.
      failures: run -> why it failed.
      config: of the grid, as JSON.
      text_columns: how many of the first columns hold text.
      figures: below the table.
      words: further words and their meanings.
      more: a second table, below the figures.

    Returns:
      Its path.

    Raises:
      UserError: the disk is full or read-only.
    """
    parts: list[page.Part] = [page.Text("No run is finished yet.")]
    if lines:
        heads, *rows = lines
        parts = [page.Table("Scores on test images.", heads, rows, text_columns)]
    if figures:
        parts.append(page.Figures(figures))
    if more:
        parts.append(more)
    opening: list[page.Part] = [page.Text(text) for text in about]
    if notes:
        opening.append(page.Notes("Before you trust these numbers", notes))
    broken = [f"{name}: {reason}" for name, reason in failures.items()]
    sections = [
        page.Section("Results", parts),
        page.Section(
            "Failed", [page.Notes("These runs failed", broken)] * bool(broken)
        ),
        page.Section("Definitions", [page.Definitions({**_WORDS, **(words or {})})]),
        page.Section(
            "To make it again",
            [
                page.versions(scoring.environment()),
                page.Record("Config", config),
            ],
        ),
    ]
    stem = Path(stem)
    text = page.render(title, opening, sections)
    return page.write(stem.with_name(f"{stem.name}.html"), text)
