"""The table of a detector's robustness, for a terminal of 100 columns."""

from collections.abc import Mapping
from typing import Any

from fdftnet_jax.reporting import wording

_COLUMNS = {
    "auc": "AUROC",
    "tpr_at_threshold": "fake called fake",
    "fpr_at_threshold": "real called fake",
}


def lines(robustness: Mapping[str, Any], level: float = 0.95) -> list[str]:
    """A row for the pictures as they are and one for every strength, mild to strong.

    Args:
      robustness: of a report (see `evaluation.results`).
      level: of the intervals.
    """
    titles = "".join(f"  {title:23}" for title in _COLUMNS.values())
    found = [
        f"  after image processing, {level:.0%} intervals; verdicts at the threshold",
        f"  {'':22}{titles}".rstrip(),
        _row("as they are", "", robustness["clean"]),
    ]
    for operation in robustness["operations"].values():
        found.append(f"  {operation['title']}: {operation['unit']}")
        found += [
            _row("", f"{row['strength']:g}", row["figures"])
            for row in operation["strengths"]
        ]
    return found


def _row(name: str, strength: str, figures: Mapping[str, Any]) -> str:
    cells = "".join(f"  {wording.bracketed(figures[name]):23}" for name in _COLUMNS)
    return f"  {name:15}{strength:>7}{cells}".rstrip()
