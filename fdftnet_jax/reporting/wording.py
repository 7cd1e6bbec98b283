"""Numbers as words that a reader without statistics understands."""

import re
from collections.abc import Mapping
from typing import Any

from fdftnet_jax.reporting import definitions

# Longer names first: some begin with others.
_NAME = re.compile(
    r"\b("
    + "|".join(map(re.escape, sorted(definitions.FIGURES, key=len, reverse=True)))
    + r")\b"
)


def verdict(hits: Mapping[str, Any], alarms: Mapping[str, Any]) -> str:
    """What a detector does to 100 fake and to 100 real pictures, in a sentence.

    Args:
      hits: {value, interval} of the share of fakes called fake.
      alarms: of the share of real images called fake.
    """
    return (
        f"Of 100 fake pictures it finds {_count(hits)}, and it calls "
        f"{_count(alarms)} of 100 real ones fake."
    )


def per_hundred(share: float) -> str:
    """A share in [0, 1] as a number of 100; never 0 or 100 where it is not quite."""
    number = round(100 * share)
    if number == 0 and share > 0:
        return "fewer than 1"
    if number == 100 and share < 1:
        return "more than 99"
    return str(number)


def _count(figure: Mapping[str, Any]) -> str:
    text = per_hundred(figure["value"])
    if figure["interval"] is None:
        return text
    low, high = (per_hundred(end) for end in figure["interval"])
    return f"{text} ({low})" if low == high else f"{text} ({low} to {high})"


def figure(found: Mapping[str, Any]) -> tuple[str, str]:
    """A figure {value, interval} as cells of a table: its value and its interval."""
    if found["interval"] is None:
        return f"{found['value']:.4f}", "-"
    low, high = found["interval"]
    return f"{found['value']:.4f}", f"{low:.4f} to {high:.4f}"


def bracketed(found: Mapping[str, Any]) -> str:
    """A figure {value, interval} in a line of text: '0.9012 [0.8800, 0.9200]'."""
    text = f"{found['value']:.4f}"
    if found["interval"] is None:
        return text
    low, high = found["interval"]
    return f"{text} [{low:.4f}, {high:.4f}]"


def sentence(note: str) -> str:
    """A note as a sentence of its own, which calls figures by their titles."""
    note = _NAME.sub(lambda found: definitions.FIGURES[found[0]][0], note)
    return f"{note[0].upper()}{note[1:]}."
