"""Faces that are followed from one sampled frame to the next."""

import numpy as np
from scipy import optimize

from fdftnet_jax.prediction.faces import Box

# Boxes of two sampled frames are of one face from this share of their union on. A head
# that turns or nods moves by less than half its box in the 0.4 s between two frames.
_LEAST_OVERLAP = 0.2
# A track ends when its face is missed in so many sampled frames in a row.
GAP = 3


class Follower:
    """Gives each face of a video the number of its track, frame by frame.

    The boxes of a frame are matched to the last boxes of the tracks, so that the sum of
    their overlaps (intersection over union) is largest. What is left over begins a
    track. Faces are told apart by their places alone: where the picture is cut, or much
    time passes between two sampled frames, one track may be of two people.
    """

    def __init__(self) -> None:
        self._number = 0
        self._frame = 0
        # Track -> its last box, and the sampled frame that this is of.
        self._last: dict[int, tuple[Box, int]] = {}

    def follow(self, boxes: list[Box]) -> list[int]:
        """The tracks of the faces of the next sampled frame, numbered from 0.

        Args:
          boxes: of its faces, may be none.
        """
        self._frame += 1
        self._last = {
            track: (box, frame)
            for track, (box, frame) in self._last.items()
            if self._frame - frame <= GAP
        }
        names = list(self._last)
        shares = overlap(boxes, [box for box, _ in self._last.values()])
        # Pairs that are too far apart count nothing, and are left.
        shares[shares < _LEAST_OVERLAP] = 0
        of_box: dict[int, int] = {}
        for row, column in zip(
            *optimize.linear_sum_assignment(shares, maximize=True), strict=True
        ):
            if shares[row, column]:
                of_box[int(row)] = names[column]
        for i, box in enumerate(boxes):
            if i not in of_box:
                of_box[i] = self._number
                self._number += 1
            self._last[of_box[i]] = box, self._frame
        return [of_box[i] for i in range(len(boxes))]


def overlap(boxes: list[Box], others: list[Box]) -> np.ndarray:
    """Intersection over union of each box with each other one: [boxes, others]."""
    a = np.array(boxes, np.float64).reshape(-1, 1, 4)
    b = np.array(others, np.float64).reshape(1, -1, 4)
    ends = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    sides = np.maximum(ends - np.maximum(a[..., :2], b[..., :2]), 0)
    common = np.prod(sides, axis=-1)
    union = np.prod(a[..., 2:], axis=-1) + np.prod(b[..., 2:], axis=-1) - common
    return common / union
