"""Makes the page, on which a person has pictures judged without a program."""

import functools
import json
from typing import TYPE_CHECKING, Any

import jinja2

from fdftnet_jax.detector import card as detector_card
from fdftnet_jax.prediction import explain
from fdftnet_jax.prediction.results import TOO_CLOSE, Row
from fdftnet_jax.serving import wording

if TYPE_CHECKING:
    from fdftnet_jax.serving.app import Server


def render(server: "Server") -> str:
    """Renders the page of a server, as HTML."""
    engine, limits = server.engine, server.store.limits
    detector, header = engine.detector, engine.header
    calibration = detector.card["calibration"]
    corrections = server.corrections
    settings: dict[str, Any] = {
        "columns": Row._fields,
        "header": header,
        "prior": calibration["prior"] if calibration else None,
        "largest": limits.size,
        "tooClose": TOO_CLOSE,
        "corrections": corrections is not None,
        "notMeant": wording.NOT_MEANT,
        "maps": wording.MAPS,
        "share": round(100 * explain.SHARE),
    }
    return (
        _environment()
        .get_template("page.html")
        .render(
            name=detector.card["name"],
            toy=detector.card["toy"],
            card=detector_card.text(detector.card, detector.digest),
            corrections=corrections,
            kept=corrections.count() if corrections else {},
            wording=wording,
            command=corrections.command(server.detector) if corrections else "",
            largest=f"{limits.size / 2**30:.3g} GiB",
            settings=json.dumps(settings),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fdftnet_jax.serving"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
