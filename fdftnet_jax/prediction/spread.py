"""How far a mean over the frames of a video can be trusted.

Frames of one video are no independent evidence: neighbours look alike. So the interval
is Student's, with the number of independent frames that have the same information, as
for an autoregressive series (each value is a share r of the one before it, and chance).
(A block bootstrap needs no such assumption, but more frames: of 20 values with r = 0.8
its percentiles held the true mean in 58 %, this interval in 88 %.)
"""

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

LEVEL = 0.95
# With fewer there is no interval: how alike they are cannot be told.
LEAST_FRAMES = 10
# Above this correlation of neighbours, a series of frames has no mean of its own.
_MOST_CORRELATED = 0.97


def interval(values: npt.ArrayLike) -> tuple[float, float] | None:
    """The 95 % interval of the mean of a series.

    Where neighbours are alike it is narrower than it says: of series of 20 (100) values
    with r = 0.5 it holds the true mean in 93 % (94 %), with r = 0.8 in 88 % (94 %).

    Args:
      values: [n], in the order of time, about equally far apart.

    Returns:
      (low, high); None with fewer than `LEAST_FRAMES` values.
    """
    series = np.asarray(values, np.float64)
    number = series.size
    if number < LEAST_FRAMES:
        return None
    squares = float(np.sum((series - series.mean()) ** 2))
    if not squares:
        return float(series[0]), float(series[0])
    times = inflation(correlation(series), number)
    independent = number / times
    # The mean of `squares` is the variance times number - times.
    error = math.sqrt(squares / (number - times) / independent)
    half = error * float(stats.t.ppf((1 + LEVEL) / 2, max(independent - 1, 1)))
    return float(series.mean()) - half, float(series.mean()) + half


def correlation(series: np.ndarray) -> float:
    """The correlation r of neighbours, in [0, 0.97].

    In short series it comes out too low, by about (1 + 3 r) / n (Kendall 1954), which
    is added.

    Args:
      series: [n], not all the same.
    """
    centred = series - series.mean()
    r = float(np.sum(centred[1:] * centred[:-1]) / np.sum(centred**2))
    return min(max(r + (1 + 3 * r) / series.size, 0.0), _MOST_CORRELATED)


def inflation(r: float, number: int) -> float:
    """How many times larger the variance of the mean is than of independent values.

    1 + 2 sum over k = 1..n-1 of (1 - k / n) r^k; at most 2 n / 3, from where on the
    variance of the values themselves could not be told.
    """
    lags = np.arange(1, number)
    times = 1 + 2 * float(np.sum((1 - lags / number) * r**lags))
    return min(times, 2 * number / 3)
