"""Names of files from anywhere, for new files and for figures."""

import functools
import hashlib
import os
import re

# Characters of a name that are kept in a file's.
_STEM = 60


def file_name(name: str, suffix: str) -> str:
    """A file name for what was made of something called `name`.

    It has the end of the name in letters that every file system takes, and a hash of
    all of it: different names have different files.
    """
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-_STEM:].lstrip(".-_")
    return f"{stem}{'-' * bool(stem)}{digest}{suffix}"


def is_figure(name: str) -> bool:
    """Whether a file has a name that `file_name` gives to a figure."""
    return re.fullmatch(r"([A-Za-z0-9._-]+-)?[0-9a-f]{12}\.(svg|png)", name) is not None


def drawable(name: str, most: int | None = None) -> str:
    """A name in characters that a figure's font has, '?' for others.

    Args:
      name: may hold any characters, line breaks and surrogates too.
      most: characters; a longer name loses its beginning.
    """
    known = _font()
    shown = "".join(c if c.isprintable() and ord(c) in known else "?" for c in name)
    if most is None or len(shown) <= most:
        return shown
    return f"...{shown[3 - most :]}"


@functools.cache
def _font() -> frozenset[int]:
    """The characters of the font of `plots.STYLE`, which comes with Matplotlib."""
    from matplotlib import font_manager, ft2font

    return frozenset(
        ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    )
