"""Makes the report of one file: a page that stands for itself, to keep and to print."""

import datetime
from collections.abc import Iterator
from typing import Any

from fdftnet_jax.prediction import explain
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.reporting import page
from fdftnet_jax.serving import wording
from fdftnet_jax.serving.case import Case, Face

_SEEN = "as the network saw it"
_FRAMES = {"fake": "#d55e00", "real": "#56b4e9", "undecided": "#ffffff"}


def as_json(case: Case) -> dict[str, Any]:
    """A case for the page: its pictures as data URIs."""
    faces = [
        {
            "view": page.png(face.view),
            "note": face.note,
            "maps": [
                {"title": m.title, "below": m.below, "picture": page.jpeg(m.pixels)}
                for m in face.maps
            ],
        }
        for face in case.faces
    ]
    timeline = page.Figure(case.timeline, "", "").source if case.timeline else ""
    return {
        "sha256": case.sha256,
        "facts": case.facts,
        "faces": faces,
        "note": case.note,
        "timeline": timeline,
        "moments": [{"face": n, "seconds": s} for n, s in case.moments],
    }


def render(case: Case, name: str, header: dict[str, Any], card: dict[str, Any]) -> str:
    """Renders the report of a case as HTML.

    Args:
      case: of the file.
      name: what its sender calls it.
      header: what the results depend on, see `scorer.header`.
      card: of the detector.
    """
    row = case.rows[0]
    prior = card["calibration"]["prior"] if card["calibration"] else None
    opening: list[page.Part] = [page.Text(wording.verdict(row), "lead")]
    if said := wording.sentence(row, header, prior):
        opening.append(page.Text(said))
    if card["toy"]:
        advice = "What it says of a photograph means nothing."
        opening.append(page.Notes(wording.TOY, [advice]))
    shown = [*_whole(case, name), *_faces(case)]
    facts = page.Table(
        "The file and how it was judged.",
        (),
        [*_facts(case, name), *_judgement(row, header, prior)],
        text_columns=2,
    )
    limits = [
        page.Text(f"{row.verdict.capitalize()} {wording.NOT_MEANT[row.verdict]}"),
        page.Text(" ".join(wording.CAUTIONS)),
        page.Text(wording.ADVICE),
    ]
    sections = [
        page.Section("What was judged", shown),
        page.Section("Facts", [facts]),
        page.Section("What this does not mean", limits),
    ]
    return page.render(f"Real or fake? {name}", opening, sections, one_sheet=True)


def _whole(case: Case, name: str) -> Iterator[page.Part]:
    """The picture with its faces framed, or the timeline of a video."""
    if case.timeline:
        yield page.Figure(
            case.timeline,
            "P(fake) of each frame against time",
            "P(fake) of each frame that was looked at, by its time.",
        )
    elif case.picture is not None:
        framed = sum(row.x is not None for row in case.rows[1:] or case.rows)
        yield page.Figure(
            _framed(case),
            name,
            "The picture, its faces framed." if framed else "The picture.",
        )
    if lines := [wording.face(row) for row in case.rows[1:]]:
        yield page.Definitions({"Each by itself": "; ".join(lines) + "."})


def _framed(case: Case) -> str:
    """The picture and the frames of its faces as an SVG."""
    assert case.picture is not None
    pixels, scale = case.picture
    height, width, _ = pixels.shape
    # Lines are as wide however large the picture is.
    line = max(height, width) / 150
    parts = [f'<image width="{width}" height="{height}" href="{page.jpeg(pixels)}"/>']
    for row in case.rows[1:] or case.rows:
        if row.x is None or row.y is None or row.width is None or row.height is None:
            continue
        x, y, w, h = (scale * v for v in (row.x, row.y, row.width, row.height))
        box = f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"'
        for colour, factor in (("#000", 2.0), (_FRAMES[row.verdict], 1.0)):
            stroke = f'stroke="{colour}" stroke-width="{line * factor:.1f}"'
            parts.append(f'{box} fill="none" {stroke}/>')
        if row.face is not None:
            size = 5 * line
            place = f'x="{x + line:.1f}" y="{max(y - 2 * line, size):.1f}"'
            style = (
                f'font-family="sans-serif" font-weight="bold" font-size="{size:.1f}"'
            )
            edge = f'stroke="#000" stroke-width="{line:.1f}" paint-order="stroke"'
            parts.append(
                f'<text {place} {style} {edge} fill="#fff">{row.face + 1}</text>'
            )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    inside = "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{inside}</svg>'


def _faces(case: Case) -> Iterator[page.Part]:
    rows = case.rows[1:] or case.rows
    several = len(case.rows) > 1
    tiles = [
        page.Tile(
            list(_pictures(face)),
            f"Face {number}: {row.verdict}" if several else "",
            [face.note] if face.note else [],
            "",
        )
        for number, (face, row) in enumerate(zip(case.faces, rows, strict=False), 1)
    ]
    if not tiles:
        return
    caption = wording.MAPS if case.faces[0].maps else ""
    notes = case.note and f"{case.note[0].upper()}{case.note[1:]}."
    yield page.Images(" ".join(filter(None, [caption, notes])), tiles)


def _pictures(face: Face) -> Iterator[page.Picture]:
    yield page.Picture(page.png(face.view), _SEEN, _SEEN)
    for found in face.maps:
        source = page.jpeg(explain.overlaid(face.view, found.pixels))
        yield page.Picture(source, found.title, f"{found.title}: {found.below}")


def _facts(case: Case, name: str) -> Iterator[tuple[str, str]]:
    yield "file", name
    yield "SHA-256", case.sha256
    yield from case.facts.items()


def _judgement(
    row: Row, header: dict[str, Any], prior: float | None
) -> Iterator[tuple[str, str]]:
    now = datetime.datetime.now().astimezone()
    yield "judged", now.strftime("%Y-%m-%d %H:%M %Z")
    detector, threshold = header["detector"], header["threshold"]
    version = header["fdftnet_jax"]
    yield "detector", f"{detector['name']}, by fdftnet_jax {version}"
    yield "fingerprint", detector["sha256"]
    if row.score is not None:
        scored = f"{row.score:.4f}"
        if row.probability is not None:
            scored += f"; calibrated P(fake) {row.probability:.4f}"
        yield "score", scored
    of = "P(fake)" if threshold["of"] == "probability" else "score"
    start = f"fake from {of} {threshold['value']:.4f} on"
    if "lower" in threshold:
        start += f", real below {threshold['lower']:.4f}"
    yield "threshold", start
    if prior is not None:
        yield "prior", f"{100 * prior:.3g} of 100 are fake to begin with"
    if row.frames is not None:
        yield "frames", f"{row.frames} were scored"
    if row.notes:
        yield "notes", row.notes
