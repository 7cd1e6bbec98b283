"""How far a mean over the frames of a video can be trusted.

Frames of one video are no independent evidence: neighbours look alike. So the interval
is from a circular block bootstrap (Politis and Romano 1992): what is drawn are runs of
successive frames, as long as neighbours stay alike.
"""

import math

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
# With fewer frames, or blocks, there is no interval: it would be far too narrow.
LEAST_FRAMES = 10
_LEAST_BLOCKS = 5
# Of neighbours; nearer to 1 the block's length would be that of any video.
_MOST_CORRELATED = 0.97


def interval(values: npt.ArrayLike) -> tuple[float, float] | None:
    """The 95 % interval of the mean of a series, by percentiles of its resamples.

    It is narrower than it says where frames are few: of series of 20 (100) values whose
    neighbours correlate by 0.5, it holds the true mean in about 82 % (91 %).

    Args:
      values: [n], in the order of time.

    Returns:
      (low, high); None with fewer than `LEAST_FRAMES` values.
    """
    series = np.asarray(values, np.float64)
    number = series.size
    if number < LEAST_FRAMES:
        return None
    length = block_length(series)
    blocks = -(-number // length)
    starts = np.random.default_rng(SEED).integers(0, number, (RESAMPLES, blocks))
    # Sums of the blocks that begin at each place, the last of a resample cut short.
    sums, short = (
        _block_sums(series, n) for n in (length, number - length * (blocks - 1))
    )
    means = (sums[starts[:, :-1]].sum(axis=1) + short[starts[:, -1]]) / number
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def block_length(series: np.ndarray) -> int:
    """The number of successive frames that are drawn together.

    (2 r / (1 - r^2))^(2/3) n^(1/3) with the correlation r of neighbours, which is best
    for autoregressive series (Carlstein 1986), rounded up; so that there are at least
    five blocks.

    Args:
      series: [n], n > 1.
    """
    centred = series - series.mean()
    power = np.sum(centred**2)
    if not power:
        return 1
    r = min(max(np.sum(centred[1:] * centred[:-1]) / power, 0), _MOST_CORRELATED)
    wanted = (2 * r / (1 - r**2)) ** (2 / 3) * series.size ** (1 / 3)
    return min(max(math.ceil(wanted), 1), max(series.size // _LEAST_BLOCKS, 1))


def _block_sums(series: np.ndarray, length: int) -> np.ndarray:
    """Sums of the `length` values from each place on, going round: [n]."""
    total = np.cumsum(np.concatenate([[0], series, series[: length - 1]]))
    return total[length:] - total[:-length]
