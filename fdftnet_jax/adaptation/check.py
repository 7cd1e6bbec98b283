"""Whether a detector still does what its file says of it: what `fdftnet check` does."""

import argparse
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fdftnet_jax import files
from fdftnet_jax.adaptation import adapt, faces, folders, tested
from fdftnet_jax.data import caches, folder
from fdftnet_jax.detector import detector
from fdftnet_jax.errors import UserError

# It does worse on some pictures than its file states.
EXIT_WORSE = 4


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user asks for.

    Attributes:
      detector: a detector's file, or 'toy'.
      sets: folders with real/ and fake/.
      all: whether all pictures of a set are scored, not its test pictures alone.
      max_loss: of AUROC, in [0, 1], against what the file states.
    """

    detector: str
    sets: tuple[str, ...]
    all: bool = False
    max_loss: float = 0.02

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Options":
        """The options of the command line."""
        return cls(
            arguments.detector, tuple(arguments.sets), arguments.all, arguments.max_loss
        )


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """Pictures of a set.

    Attributes:
      fingerprint: see `tested.fingerprint`.
      labels: [n] int, real 0 and fake 1.
      paths: of their files.
    """

    fingerprint: str
    labels: np.ndarray
    paths: list[str]


def check(options: Options) -> int:
    """Scores sets of pictures, and compares with what the detector's file states.

    Returns:
      0, or `EXIT_WORSE` where the AUROC on a set is lower than stated.

    Raises:
      UserError: the detector or a set cannot be used.
    """
    known = detector.load(options.detector)
    adaptations = known.card.get("adaptations", [])
    worse = False
    for name in options.sets:
        pictures, stated = _find(name, known, adaptations, every=options.all)
        scored = tested.Scored(_logits(known, pictures.paths, name), known.thresholds)
        figures = scored.figures(pictures.labels)
        short = (
            stated is not None
            and figures["auc"] < stated["after"]["auc"] - options.max_loss
        )
        worse |= short
        print("\n".join(_lines(name, pictures.labels, figures, stated, short=short)))
    return EXIT_WORSE if worse else 0


def _find(
    name: str,
    known: detector.Detector,
    adaptations: Sequence[Mapping[str, Any]],
    *,
    every: bool,
) -> tuple[_Pictures, dict[str, Any] | None]:
    """The pictures of a set that are scored, and what the file states of them.

    What it states is that of the latest adaptation that tested these pictures.
    """
    if every:
        return _pictures(name, known, "picture", None), None
    by = [*dict.fromkeys(a["group_by"] for a in reversed(adaptations)), "picture"]
    for group_by in dict.fromkeys(by):
        pictures = _pictures(name, known, group_by, "test")
        for adaptation in reversed(adaptations):
            for each in adaptation["sets"]:
                if each["fingerprint"] == pictures.fingerprint:
                    return pictures, {**each, "date": adaptation["date"]}
    return pictures, None


def _pictures(
    name: str, known: detector.Detector, group_by: str, split: str | None
) -> _Pictures:
    """The pictures of one split of a set, or of all."""
    name = _as_trained(name, known)
    rules = folder.Rules(
        fractions=adapt.FRACTIONS,
        group_by=group_by,
        duplicates="drop",
        max_rejected=0.5,
        decoding=known.preprocessing.decoding,
    )
    found = folder.scan(name, rules, caches.cache_dir(""))
    if found.error:
        raise UserError(found.error)
    names = [split] if split else list(found.examples)
    examples = [e for each in names for e in found.examples.get(each, [])]
    labels = np.array([example.label for example in examples], int)
    real, fake = np.bincount(labels, minlength=2)
    if not (real and fake):
        raise UserError(
            f"expected real and fake test pictures in {name}, which are 15 % of it, "
            f"found {real} and {fake}; give more pictures, or --all where the "
            "detector was trained on none of them"
        )
    digests = [found.findings[example.path].digest for example in examples]
    return _Pictures(
        tested.fingerprint(zip(labels, digests, strict=True)),
        labels,
        [os.path.join(found.dir, example.path) for example in examples],
    )


def _as_trained(name: str, known: detector.Detector) -> str:
    """A set, or the folder of its face crops where the detector works on faces."""
    classes = [str(path) for path in folders.both(name).values()]
    rules = known.card["faces"]
    crops = rules and faces.crops_for("auto", rules, classes)
    if not (crops and crops.rules):
        return name
    of = hashlib.sha256(f"{os.path.realpath(name)} {rules}".encode()).hexdigest()[:12]
    output = caches.cache_dir("") / "crops" / of
    crops.make(Path(name), output)
    return str(output)


def _logits(known: detector.Detector, paths: Sequence[str], name: str) -> np.ndarray:
    """[n, 2] of pictures."""
    shown = tqdm(paths, desc=name, unit=" pictures", disable=None)
    margin = known.log_odds(shown)
    return np.stack([np.zeros_like(margin), margin], axis=1)


def _lines(
    name: str,
    labels: np.ndarray,
    figures: Mapping[str, float],
    stated: Mapping[str, Any] | None,
    *,
    short: bool,
) -> Iterator[str]:
    """What is said of a set."""
    real, fake = np.bincount(labels, minlength=2)
    yield (
        f"{files.printable(name)}: AUROC {figures['auc']:.3f} on {real} real and "
        f"{fake} fake pictures; {figures['real_called_fake']:.1%} of the real ones "
        f"called fake, {figures['fake_called_real']:.1%} of the fake ones called real"
        + f", {figures['undecided']:.1%} of all too close to call"
        * bool(figures["undecided"])
    )
    if stated is None:
        yield "  the file states nothing of these pictures"
        return
    verdict = "WORSE than" if short else "as"
    yield (
        f"  {verdict} its file states: AUROC {stated['after']['auc']:.3f} on "
        f"{stated['date']} ({stated['name']})"
    )
