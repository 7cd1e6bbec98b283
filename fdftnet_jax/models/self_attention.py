"""The self-attention module of FDFtNet (Eq. 1-3, Fig. 3, Table 1).

Table 1 prints 16 parameters for each convolution; Table 2's counts (1,321 at 32
channels) are those of f, g: C -> C/8 and h: C -> C, each with a bias, plus gamma.
"""

import flax.linen as nn
import jax

from fdftnet_jax.models.layers import Conv
from fdftnet_jax.ops import attention


class SelfAttention(nn.Module):
    """y = gamma * o + x, the identity at initialisation (gamma = 0).

    Attributes:
      bottleneck: b, the ratio by which f and g reduce the channels.
    """

    bottleneck: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channels] -> the same shape."""
        channels = x.shape[-1]
        f = Conv(channels // self.bottleneck, (1, 1), name="f")(x)
        g = Conv(channels // self.bottleneck, (1, 1), name="g")(x)
        h = Conv(channels, (1, 1), name="h")(x)
        gamma = self.param("gamma", nn.initializers.zeros, ())
        f, g, h = (a.reshape(a.shape[0], -1, a.shape[-1]) for a in (f, g, h))
        return gamma * attention.attend(f, g, h).reshape(x.shape) + x
