"""A few images at a time: what a loop over groups works on stays in a CPU's cache."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

# What a group takes, at most.
_BYTES = 4 * 2**20


def split(arrays: Sequence[jax.Array], bytes_per_image: int) -> list[jax.Array]:
    """Groups images so that the work on one group takes 4 MB, or one image's.

    Args:
      arrays: [batch, ...] each.
      bytes_per_image: that the work on one image takes.

    Returns:
      Each as [groups, images, ...]. A batch of unknown size, of an exported program,
      comes in groups of one.
    """
    batch = arrays[0].shape[0]
    size = 1
    if isinstance(batch, int):
        fitting = max(1, min(batch, _BYTES // bytes_per_image))
        size = next(n for n in range(fitting, 0, -1) if batch % n == 0)
    return [array.reshape(-1, size, *array.shape[1:]) for array in arrays]


def map_images(
    function: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    bytes_per_image: int,
) -> Any:
    """`function(*arrays)` for a function of each image by itself, group by group.

    Args:
      function: [images, ...] each -> [images, ...].
      arrays: [batch, ...] each.
      bytes_per_image: as in `split`.
    """
    groups = split(arrays, bytes_per_image)
    out = lax.map(lambda group: function(*group), groups)
    return out.reshape(arrays[0].shape[0], *out.shape[2:])
