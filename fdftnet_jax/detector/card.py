"""Writes the card of a detector as text: what to know before trusting a verdict."""

import textwrap
from collections.abc import Iterator
from typing import Any

_WIDTH = 80
_INDENT = 14
_TOY = (
    "A TOY, trained on drawn pictures: it shows that the machinery works, and says "
    "nothing about photographs or faces."
)
_LIMITS = (
    "A score is evidence, no proof. Forgeries, cameras and compressions unlike those "
    "of the training may pass for real, or real pictures for fake."
)
_VIEWS = {
    "resize": "the whole picture, resized to {size}x{size}",
    "crops": "{grid}x{grid} windows of {size}x{size} pixels{mirrored}, mean of their "
    "logits",
    "centre": "the middle {size}x{size} pixels; smaller pictures are enlarged to that",
}


def text(card: dict[str, Any], digest: str) -> str:
    """Writes a card as lines of at most 80 characters.

    Args:
      card: of `file.read`.
      digest: of the file.

    Raises:
      KeyError, TypeError, ValueError: it is not as `export` writes it.
    """
    lines = [_plain(card["name"]), ""]
    for title, value in (*_rows(card), ("sha256", digest)):
        lines += textwrap.wrap(
            _plain(value),
            _WIDTH,
            initial_indent=f"{title:{_INDENT}}",
            subsequent_indent=" " * _INDENT,
        )
    return "\n".join(lines)


def _rows(card: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if card["toy"]:
        yield "note", _TOY
    yield "network", _network(card)
    yield "input", _input(card["preprocessing"])
    yield "faces", _faces(card["faces"])
    yield "classes", ", ".join(f"{i} {label}" for i, label in enumerate(card["labels"]))
    yield "threshold", _threshold(card)
    if (calibration := card["calibration"]) is not None:
        yield (
            "calibration",
            f"P(fake) by temperature {calibration['temperature']:.4g} and prior "
            f"{calibration['prior']:.3g}, on {calibration['num_real']} real and "
            f"{calibration['num_fake']} fake images of validation",
        )
        for note in calibration["notes"]:
            yield "", note
    for index, data in enumerate(card["trained_on"]):
        yield "" if index else "trained on", _data(data)
    if card["weights"] is not None:
        yield "began with", f"the weights in {card['weights']['path']}"
    checkpoint = card["checkpoint"]
    loss = checkpoint["validation_loss"]
    yield (
        "checkpoint",
        f"step {checkpoint['step']}, epoch {checkpoint['epoch']}"
        + (f", validation loss {loss:.4f}" if loss is not None else "")
        + " without the regression" * card["model"].get("regression", False),
    )
    for index, evaluation in enumerate(card["evaluations"]):
        yield "" if index else "evaluated on", _evaluation(evaluation)
    if not card["evaluations"]:
        yield "evaluated on", "nothing: no report lay beside the checkpoint"
    for index, adaptation in enumerate(card.get("adaptations", [])):
        first, *others = _adaptation(adaptation)
        yield "" if index else "adapted", first
        yield from (("", line) for line in others)
    yield (
        "program",
        f"StableHLO for {', '.join(card['stablehlo']['platforms'])}, which JAX "
        "promises to read for six months, beside the weights"
        + _by_code(card["model"]["backbone"]),
    )
    yield "written by", ", ".join(f"{k} {v}" for k, v in card["versions"].items())
    yield "licence", card["licence"]
    yield "limits", _LIMITS


def _network(card: dict[str, Any]) -> str:
    model, parameters = card["model"], card["parameters"]
    kind = {"fdftnet": "FDFtNet on ", "linear": "a linear layer on "}
    details = f"{kind.get(model['kind'], '')}{model['backbone']}"
    if model["kind"] == "fdftnet":
        details += f", N = {model['num_blocks']}, M = {model['num_stages']}"
        details += " and a regression beside it" * model.get("regression", False)
    trained = parameters["trained"]
    return (
        f"{details}; {parameters['all']:,} parameters"
        + (f", {trained:,} of them trained last" if trained is not None else "")
        + f"; computes in {model['dtype']}, stored as "
        + card["stored_as"]
    )


def _input(record: dict[str, Any]) -> str:
    mirrored = " and mirrored" * record.get("mirror", False)
    view = record["view"]
    if view == "crops" and record["grid"] == 1 and not mirrored:
        view = "centre"
    seen = _VIEWS[view].format(**record, mirrored=mirrored)
    return f"{seen}; pixels scaled by {record['scaling']}"


def _faces(rules: dict[str, Any] | None) -> str:
    if rules is None:
        return "no rules of face crops are known: pictures are scored as they are"
    return (
        f"cut by {rules['detector']} {rules['detector_version']}, {rules['faces']}, "
        f"margin {rules['margin']:g}, at least {rules['min_size']} pixels and "
        f"confidence {rules['min_confidence']:g}"
    )


def _threshold(card: dict[str, Any]) -> str:
    threshold = card["threshold"]
    what = {"raw": "score", "calibrated": "P(fake)"}[threshold["probability_of"]]
    fake = (
        f"fake from {what} {threshold['probability']:.4f} (logit "
        f"{threshold['logit']:.4f})"
    )
    if "lower_logit" not in threshold:
        return f"{fake}: {threshold['rule']}"
    return (
        f"{fake}, real below {threshold['lower_probability']:.4f} (logit "
        f"{threshold['lower_logit']:.4f}), undecided between: {threshold['rule']}"
    )


def _data(data: dict[str, Any]) -> str:
    where = f" ({data['folder']})" if data["folder"] else ""
    shots = f", at most {data['shots']} of each class" if data["shots"] else ""
    counts = f"{data['real']:,} real and {data['fake']:,} fake images"
    return f"{data['name']}{where}, split {data['split']}{shots}: {counts}"


def _evaluation(evaluation: dict[str, Any]) -> str:
    auc = evaluation["auc"]
    interval = ""
    if auc["interval"]:
        low, high = auc["interval"]
        interval = f" [{low:.4f}, {high:.4f}] ({evaluation['level']:.0%} interval)"
    return (
        f"{evaluation['data']}, split {evaluation['split']}: AUROC "
        f"{auc['value']:.4f}{interval}, {evaluation['real']:,} real and "
        f"{evaluation['fake']:,} fake images"
    )


def _adaptation(adaptation: dict[str, Any]) -> Iterator[str]:
    """A line on an adaptation, and one on each of its sets of test pictures."""
    corrections = adaptation["corrections"]
    yield (
        f"{adaptation['date']} from {adaptation['start']}, by {adaptation['real']:,} "
        f"real and {adaptation['fake']:,} fake pictures"
        + f", {corrections:,} of them corrections"
        * bool(corrections)
    )
    for each in adaptation["sets"]:
        before, after = each["before"], each["after"]
        began = f"{before['auc']:.3f} -> " if before else ""
        yield (
            f"- {each['name']} ({'old' if each['old'] else 'new'}; {each['real']:,} "
            f"real, {each['fake']:,} fake tested): AUROC {began}{after['auc']:.3f}"
        )


def _by_code(backbone: str) -> str:
    if ":" not in backbone:
        return ""
    return f"; predict needs --program, as {backbone} is not part of the package"


def _plain(value: str) -> str:
    """Replaces characters that would move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in value)
