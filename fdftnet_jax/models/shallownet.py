"""ShallowNetV3 (Tariq et al., "GAN is a friend or foe?", SAC 2019).

Eight convolutions without normalisation between them, then a dense layer that holds
nearly all of the parameters. The first dense layer fits the image size that the
network was initialised with. Departs from Keras's default in that the convolutions
start He-uniform: Glorot's smaller kernels let the signal fade, and a run often ends
with constant logits.
"""

import flax.linen as nn
import jax

from fdftnet_jax.models.layers import BatchNorm, Dense, Dropout, HeConv
from fdftnet_jax.ops.pooling import max_pool


class ShallowNetV3(nn.Module):
    """ShallowNetV3; 109,344 parameters without its top, 4,835,106 with it at 64x64.

    Attributes:
      num_classes: None returns the feature map after the eighth convolution.
      axis_name: the pmapped axis of the global batch, for dropout and statistics.
      taps: whether the feature map comes with those of smaller depths: a tuple, of
        which it is the last.
    """

    num_classes: int | None = None
    axis_name: str | None = None
    taps: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
          images: [batch, height, width, 3] float32 in [-1, 1].
          train: whether dropout is on and the batch's own statistics are used.

        Returns:
          Logits [batch, num_classes], or the feature map: [batch, 12, 12, 32] at 64x64.
        """
        x, maps = images, []
        stack = [
            # features, kernel, max-pool after it
            (32, 5, False),
            (32, 1, False),
            (32, 1, True),
            (64, 3, False),
            (64, 1, False),
            (64, 1, True),
            (128, 3, False),
            (32, 1, False),
        ]
        for index, (features, kernel, pool) in enumerate(stack, 1):
            x = HeConv(
                features, (kernel, kernel), padding="VALID", name=f"conv{index}"
            )(x)
            x = nn.relu(x)
            if pool:
                maps.append(x)
                x = max_pool(x, 2, 2)
            x = Dropout(0.25, self.axis_name, name=f"dropout{index}")(x, train=train)
        if self.num_classes is None:
            return (*maps, x) if self.taps else x
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(Dense(1024, name="dense1")(x))
        x = BatchNorm(
            use_running_average=not train, axis_name=self.axis_name, name="bn1"
        )(x)
        x = Dropout(0.25, self.axis_name, name="dropout9")(x, train=train)
        return Dense(self.num_classes, name="dense2")(x)
