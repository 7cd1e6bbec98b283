"""SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360).

Follows version 1.1 of the authors' release: a 3x3/2 stem of 64 filters and max-pools
after conv1, fire3 and fire5. Nothing is padded but the 3x3 expand convolutions. There
is no batch normalisation. conv10 is followed by ReLU and global average pooling, as
published, so that its logits are never negative.

Departs from the release in how it starts, because without normalisation a run easily
ends with that last ReLU dead and both logits 0: kernels are He-uniform (Glorot's let
the signal fade over ten layers), and the biases of conv10 start at 1, on the ReLU's
open side for both classes.

| variant | follows | max-pools |
|---|---|---|
| keras | the release, as the paper's Keras code | unpadded |
| torch | torchvision's squeezenet1_1 | the last window may reach over the border |

Both give the same at 64, 128 and 224 pixels; at 299 the map has 17 or 18 pixels a side.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.layers import Dropout, HeConv
from fdftnet_jax.ops.pooling import max_pool

# variant: padding of the max-pools
VARIANTS = {"keras": "VALID", "torch": "CEIL"}


class Fire(nn.Module):
    """Squeezes the channels, then expands them by 1x1 and 3x3 convolutions."""

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h, w, 2 * expand]."""
        x = nn.relu(HeConv(self.squeeze, (1, 1), name="squeeze1x1")(x))
        left = nn.relu(HeConv(self.expand, (1, 1), name="expand1x1")(x))
        right = nn.relu(HeConv(self.expand, (3, 3), name="expand3x3")(x))
        return jnp.concatenate([left, right], axis=-1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1; 722,496 parameters without its top.

    Attributes:
      num_classes: None returns the feature map after fire9.
      axis_name: the pmapped axis of the global batch, for dropout.
      variant: 'keras' or 'torch', see the table above.
      taps: whether the feature map comes with those of smaller depths: a tuple, of
        which it is the last.
    """

    num_classes: int | None = None
    axis_name: str | None = None
    variant: str = "keras"
    taps: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
          images: [batch, height, width, 3] float32 in [-1, 1].
          train: whether dropout is on.

        Returns:
          Logits [batch, num_classes], or the feature map: [batch, 3, 3, 512] at 64x64.
        """
        padding = VARIANTS[self.variant]
        x = nn.relu(HeConv(64, (3, 3), 2, padding="VALID", name="conv1")(images))
        maps = [x]
        x = max_pool(x, 3, 2, padding)
        x = Fire(16, 64, name="fire2")(x)
        x = Fire(16, 64, name="fire3")(x)
        maps.append(x)
        x = max_pool(x, 3, 2, padding)
        x = Fire(32, 128, name="fire4")(x)
        x = Fire(32, 128, name="fire5")(x)
        maps.append(x)
        x = max_pool(x, 3, 2, padding)
        x = Fire(48, 192, name="fire6")(x)
        x = Fire(48, 192, name="fire7")(x)
        maps.append(x)
        x = Fire(64, 256, name="fire8")(x)
        x = Fire(64, 256, name="fire9")(x)
        if self.num_classes is None:
            return (*maps, x) if self.taps else x
        x = Dropout(0.5, self.axis_name, name="drop9")(x, train=train)
        top = HeConv(
            self.num_classes,
            (1, 1),
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.ones,
            name="conv10",
        )
        x = nn.relu(top(x))
        return jnp.mean(x, axis=(1, 2))
