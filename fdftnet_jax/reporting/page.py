"""Makes a self-contained page of HTML of its parts.

A page loads nothing: pictures are data URIs, the style stands in the file, there is no
script, and a content security policy forbids the browser to fetch anything. It reads at
360 pixels of width and on paper; what opens and closes does so by keyboard. Texts are
escaped, whatever a path or a folder is called.
"""

import base64
import dataclasses
import functools
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import numpy as np
from PIL import Image

from fdftnet_jax import files

_QUALITY = 90


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; one of `weight` 'lead' is set large, one of 'small' small."""

    kind: ClassVar[str] = "text"
    text: str
    weight: str = ""


@dataclasses.dataclass(frozen=True)
class Notes:
    """Warnings in a box, a line each."""

    kind: ClassVar[str] = "notes"
    title: str
    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Term:
    """A word whose meaning opens below it."""

    text: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Terms:
    """Words whose meanings open below them, one under the other; not on paper."""

    kind: ClassVar[str] = "terms"
    items: Sequence[Term]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, which scrolls in its own box where the page is narrow.

    Attributes:
      caption: what it shows.
      columns: their heads; the first names the row; none for rows that need no heads.
      rows: cells, as many as there are columns.
      text_columns: how many of the first columns hold text; the others numbers.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str | Term]
    rows: Sequence[Sequence[str | Term]]
    text_columns: int = 1


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
      svg: its file's text.
      alt: what it shows, in words, for those who do not see it.
      caption: how to read it.
    """

    kind: ClassVar[str] = "figure"
    svg: str
    alt: str
    caption: str

    @property
    def source(self) -> str:
        """The drawing as a data URI."""
        return _data_uri("svg+xml", self.svg.encode())


@dataclasses.dataclass(frozen=True)
class Figures:
    """Drawings side by side, where there is room."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of pixels.

    Attributes:
      source: a data URI, see `png` and `jpeg`.
      alt: what it shows, in words.
      label: below it.
    """

    source: str
    alt: str
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One or several pictures of one image and what there is to say of it.

    Attributes:
      pictures: side by side.
      title: above the lines.
      lines: below the pictures.
      path: of the image, last.
    """

    pictures: Sequence[Picture]
    title: str
    lines: Sequence[str]
    path: str


@dataclasses.dataclass(frozen=True)
class Images:
    """Tiles in a grid."""

    kind: ClassVar[str] = "images"
    caption: str
    tiles: Sequence[Tile]


@dataclasses.dataclass(frozen=True)
class Definitions:
    """Words and their meanings."""

    kind: ClassVar[str] = "definitions"
    items: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Record:
    """A text for programs and specialists, closed until it is opened.

    Attributes:
      title: what it is.
      text: shown as it stands.
      printed: whether it is on paper, too.
    """

    kind: ClassVar[str] = "record"
    title: str
    text: str
    printed: bool = True


Part = Text | Notes | Terms | Table | Figure | Figures | Images | Definitions | Record


@dataclasses.dataclass(frozen=True)
class Section:
    """Parts under a heading; without parts it is left out."""

    title: str
    parts: Sequence[Part]


def render(
    title: str,
    opening: Sequence[Part],
    sections: Sequence[Section],
    foot: str = "",
    *,
    one_sheet: bool = False,
) -> str:
    """Renders a page as text.

    Args:
      title: of the page.
      opening: what stands before the list of contents: the first screen.
      sections: in their order.
      foot: a last line.
      one_sheet: whether it is short, and meant for one sheet of paper: it has no list
        of contents then.
    """
    template = _environment().get_template("page.html")
    shown = [section for section in sections if section.parts]
    return template.render(
        title=title, opening=opening, sections=shown, foot=foot, one_sheet=one_sheet
    )


def write(path: str | os.PathLike[str], text: str) -> Path:
    """Writes a page; makes its folder.

    Returns:
      Its path.

    Raises:
      UserError: the disk refuses.
    """
    path = Path(path)
    with files.writing(path.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, text)
    return path


def versions(environment: Mapping[str, Any]) -> Table:
    """The table of the environment that `scoring.environment` describes."""
    rows = [
        ("python", environment["python"]),
        *environment["versions"].items(),
        ("device", environment["device"]),
        ("commit", environment["git_commit"]),
        ("flags", " ".join(environment["flags"])),
    ]
    return Table("Versions.", (), rows, text_columns=2)


def png(image: np.ndarray) -> str:
    """Encodes an image, uint8 [h, w, 3] or [h, w], without loss, as a data URI."""
    return _encoded(image, "png", optimize=True)


def jpeg(image: np.ndarray) -> str:
    """Encodes an image, uint8 [h, w, 3], as the data URI of a JPEG of quality 90."""
    return _encoded(image, "jpeg", quality=_QUALITY)


def _encoded(image, kind, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return _data_uri(kind, file.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fdftnet_jax.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
