"""Faces followed from frame to frame."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdftnet_jax.prediction import video
from fdftnet_jax.prediction.video import Follower

LEFT, RIGHT = (10, 10, 40, 40), (100, 20, 50, 50)


def followed(*frames):
    follower = Follower()
    return [follower.follow(list(boxes)) for boxes in frames]


def moved(box, x, y=0):
    return box[0] + x, box[1] + y, *box[2:]


def test_faces_keep_their_tracks_whatever_their_order():
    found = followed(
        [LEFT, RIGHT], [moved(RIGHT, 9), moved(LEFT, 0, 9)], [LEFT], [LEFT, RIGHT]
    )
    assert found == [[0, 1], [1, 0], [0], [0, 1]]


def test_a_face_elsewhere_is_another():
    # Shares of the union of 0.2, and a little less.
    [_, same] = followed([(0, 0, 60, 60)], [(40, 0, 60, 60)])
    [_, other] = followed([(0, 0, 60, 60)], [(41, 0, 60, 60)])
    assert same == [0] and other == [1]


def test_a_track_ends_after_a_gap():
    missed = [[]] * (video.GAP - 1)
    assert followed([LEFT], *missed, [LEFT])[-1] == [0]
    assert followed([LEFT], *missed, [], [LEFT])[-1] == [1]
    # It is the last box that counts.
    assert followed([LEFT], [moved(LEFT, 20)], [], [moved(LEFT, 40)])[-1] == [0]


def test_the_best_pairs_are_chosen_together():
    """The first box fits both tracks, better the one that is all the second fits."""
    a, b = (0, 0, 100, 100), (60, 0, 100, 100)
    first, second = (25, 0, 100, 100), (0, 0, 100, 50)
    (fits_a, fits_b), (only_a, none) = video.overlap([first, second], [a, b])
    assert fits_a > only_a > fits_b > 0.2 > none
    assert followed([a, b], [first, second])[-1] == [1, 0]
    assert followed([b, a], [second, first])[-1] == [1, 0]


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 9)] * 2)))
def test_overlaps_are_those_of_the_pixels(boxes):
    drawn = np.zeros((len(boxes), 18, 18), bool)
    for mask, (x, y, width, height) in zip(drawn, boxes, strict=True):
        mask[y : y + height, x : x + width] = True
    shares = video.overlap(boxes, boxes)
    assert shares.shape == (len(boxes),) * 2
    for i, a in enumerate(drawn):
        for j, b in enumerate(drawn):
            assert shares[i, j] == pytest.approx((a & b).sum() / (a | b).sum())
