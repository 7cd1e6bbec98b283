"""Test pictures before and after an adaptation, and the record that is kept of it."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fdftnet_jax.evaluation import intervals, metrics
from fdftnet_jax.training.processes import say
from fdftnet_jax.verdicts import FAKE, REAL, UNDECIDED, Thresholds

# With fewer test pictures of a class, a loss of a few points cannot be seen.
_FEW_TESTED = 100


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a detector makes of test pictures.

    Attributes:
      logits: [n, 2].
      thresholds: on log odds.
    """

    logits: np.ndarray
    thresholds: Thresholds

    def figures(self, labels: np.ndarray) -> dict[str, float]:
        """AUROC, and what the verdicts come to.

        Of each class the share that is called what it is not, and of all pictures the
        share that is too close to call.

        Args:
          labels: [n] int, real 0 and fake 1; both must occur.
        """
        ranking = metrics.ranking(labels, self.logits)
        verdicts = self.thresholds.verdicts(ranking)
        return {
            "auc": metrics.binary_metrics(labels, self.logits)["auc"],
            "real_called_fake": float(np.mean(verdicts[labels == 0] == FAKE)),
            "fake_called_real": float(np.mean(verdicts[labels == 1] == REAL)),
            "undecided": float(np.mean(verdicts == UNDECIDED)),
        }


@dataclasses.dataclass(frozen=True)
class Tested:
    """A test split, scored before and after an adaptation.

    Attributes:
      name: of the forgery, for people.
      old: whether the adaptation was to keep it.
      labels: [n] int, real 0 and fake 1.
      groups: [n] str.
      fingerprint: of the pictures, see `fingerprint`.
      after: by the new detector.
      before: by the one that it started from, None where there was none.
    """

    name: str
    old: bool
    labels: np.ndarray
    groups: np.ndarray
    fingerprint: str
    after: Scored
    before: Scored | None

    @functools.cached_property
    def change(self) -> dict[str, Any] | None:
        """The AUROC after minus that before, see `intervals.paired_bootstrap`."""
        if self.before is None:
            return None
        return intervals.paired_bootstrap(
            self.labels, self.after.logits, self.before.logits, self.groups
        )

    @property
    def counts(self) -> tuple[int, int]:
        """The number of real and of fake pictures."""
        real, fake = np.bincount(self.labels, minlength=2)
        return int(real), int(fake)

    def record(self) -> dict[str, Any]:
        """What is kept of it, ready for JSON."""
        real, fake = self.counts
        before = self.before and self.before.figures(self.labels)
        return {
            "name": self.name,
            "old": self.old,
            "real": real,
            "fake": fake,
            "fingerprint": self.fingerprint,
            "before": before,
            "after": self.after.figures(self.labels),
            "change": self.change and list(self.change["interval"]),
        }


def fingerprint(pictures: Iterable[tuple[int, str]]) -> str:
    """A hash of test pictures, wherever they lie and whatever they are called.

    Args:
      pictures: label and digest (`leaks.digest`) of each.
    """
    rows = sorted(f"{label} {digest}" for label, digest in pictures)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """What became of every test split, for a terminal.

    Args:
      records: of `Tested.record`.
    """
    lines = []
    for each in records:
        kind = "old" if each["old"] else "new"
        lines.append(
            f"{each['name']} ({kind}): {each['real']} real and {each['fake']} fake "
            "test pictures"
        )
        lines.append(
            f"  {'':8}{'AUROC':>7}{'real called fake':>19}{'fake called real':>19}"
        )
        for when in ("before", "after"):
            if found := each[when]:
                lines.append(
                    f"  {when:8}{found['auc']:7.3f}{found['real_called_fake']:18.1%} "
                    f"{found['fake_called_real']:18.1%}{_undecided(found)}"
                )
        if each["change"]:
            low, high = each["change"]
            change = each["after"]["auc"] - each["before"]["auc"]
            lines.append(
                f"  {'change':8}{change:+7.3f}  ({low:+.3f} to {high:+.3f} with 95 % "
                "confidence)"
            )
    return "\n".join(lines)


def _undecided(figures: Mapping[str, float]) -> str:
    share = figures["undecided"]
    return f"  ({share:.1%} too close to call)" if share else ""


def judge(tested: Sequence[Tested], max_forgetting: float) -> list[str]:
    """Which old forgeries were forgotten, a sentence each; says where none can tell.

    Args:
      tested: the test splits.
      max_forgetting: the largest loss of AUROC, in [0, 1], by the upper end of its
        95 % interval.
    """
    forgotten = []
    for each in tested:
        change = each.change if each.old else None
        if change is None:
            continue
        if min(each.counts) < _FEW_TESTED:
            say(
                f"{each.name}: {min(each.counts)} test pictures of a class cannot "
                f"tell whether more than {max_forgetting:g} of AUROC was lost"
            )
            continue
        low, _ = change["interval"]
        if -low > max_forgetting:
            forgotten.append(
                f"{each.name} may have lost {-low:.3f} of AUROC, more than "
                f"{max_forgetting:g}"
            )
    return forgotten
