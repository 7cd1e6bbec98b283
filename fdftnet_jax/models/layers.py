"""The layers that the networks share: convolution, normalisation, dropout, gates."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.ops import convolution, normalization

# New layers start as in the paper's Keras code: Glorot-uniform kernels, zero biases.
Conv = functools.partial(
    nn.Conv,
    kernel_init=nn.initializers.glorot_uniform(),
    conv_general_dilated=convolution.conv_general_dilated,
)
# For backbones without normalisation, where Glorot's kernels let the signal fade.
HeConv = functools.partial(Conv, kernel_init=nn.initializers.he_uniform())
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())


class BatchNorm(nn.Module):
    """Batch normalisation over the channels; parameters and statistics as in Flax.

    Attributes:
      use_running_average: normalises by the running statistics, else by the batch's.
      axis_name: the pmapped axis that the global batch is spread over, or None.
      epsilon: added to the variance; Keras's.
      momentum: of the running statistics. Keras's 0.99 lags for tens of epochs at 16
        steps an epoch.
    """

    use_running_average: bool
    axis_name: str | None = None
    epsilon: float = 1e-3
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., channels] -> the same."""
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        variance = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if self.use_running_average:
            return normalization.scale_and_shift(
                x, mean.value, variance.value, scale, bias, self.epsilon
            )
        starts = self.is_initializing()
        x, *found = normalization.batch_norm(
            x, scale, bias, self.epsilon, None if starts else self.axis_name
        )
        if not starts:
            for running, value in zip((mean, variance), found, strict=True):
                running.value = (
                    self.momentum * running.value + (1 - self.momentum) * value
                )
        return x


def depth_statistics(maps: Sequence[jax.Array]) -> jax.Array:
    """Pools feature maps of several depths to the mean and deviation of each channel.

    Args:
      maps: each [batch, h, w, c], with h, w and c of its own.

    Returns:
      [batch, 2 * sum of all c]: of each map its means, then its standard deviations.
    """
    pooled = []
    for x in maps:
        # bfloat16 has too few digits for a difference of squares.
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=(1, 2), keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), axis=(1, 2))
        # (The root has no derivative at 0, where a map is constant.)
        pooled += [mean[:, 0, 0], jnp.sqrt(variance + 1e-6)]
    return jnp.concatenate(pooled, axis=-1)


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """Returns ReLU6(x + 3) / 6 (Howard et al. 2019), in [0, 1]."""
    return nn.relu6(x + 3) / 6


def hard_swish(x: jax.Array) -> jax.Array:
    """Returns x ReLU6(x + 3) / 6 (FDFtNet Eq. 4)."""
    return x * hard_sigmoid(x)


class Dropout(nn.Module):
    """Dropout whose mask depends on the example's place in the global batch.

    One device, eight devices and a resumed run therefore drop the same units.

    Attributes:
      rate: the probability of dropping a unit, in [0, 1).
      axis_name: the pmapped axis that the global batch is spread over, or None.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns `x`, [batch, ...], masked and rescaled when `train`."""
        if not train or self.rate == 0:
            return x
        first: jax.Array | int = 0
        if self.axis_name is not None and not self.is_initializing():
            first = jax.lax.axis_index(self.axis_name) * x.shape[0]
        rng = self.make_rng("dropout")
        keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(
            first + jnp.arange(x.shape[0])
        )
        keep = jax.vmap(
            lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:])
        )(keys)
        return jnp.where(keep, x / (1 - self.rate), 0)
