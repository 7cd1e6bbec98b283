"""Faces followed from frame to frame, and how far the mean of a track is trusted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fdftnet_jax.prediction import spread, tracks
from fdftnet_jax.prediction.tracks import Follower

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
    missed = [[]] * (tracks.GAP - 1)
    assert followed([LEFT], *missed, [LEFT])[-1] == [0]
    assert followed([LEFT], *missed, [], [LEFT])[-1] == [1]
    # It is the last box that counts.
    assert followed([LEFT], [moved(LEFT, 20)], [], [moved(LEFT, 40)])[-1] == [0]


def test_the_best_pairs_are_chosen_together():
    """The first box fits both tracks, better the one that is all the second fits."""
    a, b = (0, 0, 100, 100), (60, 0, 100, 100)
    first, second = (25, 0, 100, 100), (0, 0, 100, 50)
    (fits_a, fits_b), (only_a, none) = tracks.overlap([first, second], [a, b])
    assert fits_a > only_a > fits_b > 0.2 > none
    assert followed([a, b], [first, second])[-1] == [1, 0]
    assert followed([b, a], [second, first])[-1] == [1, 0]


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 9)] * 2)))
def test_overlaps_are_those_of_the_pixels(boxes):
    drawn = np.zeros((len(boxes), 18, 18), bool)
    for mask, (x, y, width, height) in zip(drawn, boxes, strict=True):
        mask[y : y + height, x : x + width] = True
    shares = tracks.overlap(boxes, boxes)
    assert shares.shape == (len(boxes),) * 2
    for i, a in enumerate(drawn):
        for j, b in enumerate(drawn):
            assert shares[i, j] == pytest.approx((a & b).sum() / (a | b).sum())


# The interval.


def series(rng, r, number):
    """An autoregressive series of mean 0 and variance 1."""
    values = [rng.normal()]
    for _ in range(number - 1):
        values.append(r * values[-1] + rng.normal() * np.sqrt(1 - r**2))
    return np.array(values)


def test_of_independent_values_it_is_student_s():
    values = np.array([1, -2, 3, -1, 2.5, -3, 1, -1, 2, -2, 3, -1.5])
    assert spread.correlation(values) == 0
    expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose(spread.interval(values), expected, rtol=1e-12)


@pytest.mark.parametrize(("r", "number"), [(0.0, 7), (0.5, 12), (0.9, 100)])
def test_the_inflation_is_that_of_the_covariance_matrix(r, number):
    places = np.arange(number)
    covariance = r ** np.abs(places[:, None] - places).astype(float)
    expected = covariance.sum() / number
    assert spread.inflation(r, number) == pytest.approx(expected)


@pytest.mark.parametrize("r", [0.0, 0.6])
def test_it_holds_the_true_mean_about_as_often_as_it_says(r):
    rng = np.random.default_rng(3)
    held = [
        low <= 0 <= high
        for low, high in (spread.interval(series(rng, r, 60)) for _ in range(400))
    ]
    # 0.95 with a standard error of 0.011; naive intervals hold it in 0.68 of r = 0.6.
    assert 0.90 < np.mean(held) < 0.985


def test_few_and_equal_values():
    assert spread.interval(np.arange(spread.LEAST_FRAMES - 1)) is None
    assert spread.interval(np.full(20, 1.5)) == (1.5, 1.5)
    # Two scenes: as many independent values.
    low, high = spread.interval(np.repeat([-1.0, 1.0], 50))
    assert low < -0.9 and high > 0.9
