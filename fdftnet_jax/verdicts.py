"""From scores to verdicts. Imports little: prediction needs no more."""

import dataclasses

import numpy as np
import numpy.typing as npt

REAL, FAKE, UNDECIDED = "real", "fake", "undecided"


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Turns scores into verdicts: real below `lower`, fake from `upper` on.

    Between the two a score is too close to call, and the verdict is `UNDECIDED`. Where
    both are the same, every score is decided.

    Attributes:
      lower: the lowest score that is not called real.
      upper: the lowest score that is called fake, at least `lower`.
    """

    lower: float
    upper: float

    def verdicts(self, scores: npt.ArrayLike) -> np.ndarray:
        """REAL, FAKE or UNDECIDED for each score.

        Args:
          scores: [...], on the scale of the two thresholds: logits, or probabilities.

        Returns:
          [...] str.
        """
        scores = np.asarray(scores)
        not_fake = np.where(scores < self.lower, REAL, UNDECIDED)
        return np.where(scores >= self.upper, FAKE, not_fake)
