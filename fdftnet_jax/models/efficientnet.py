"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; Lite variant of 2020).

EfficientNet-B0 without squeeze-and-excitation, with ReLU6 in the place of swish:

| blocks | kernel | first stride | expansion | channels |
|---|---|---|---|---|
| stem convolution | 3 | 2 | | 32 |
| 1 | 3 | 1 | 1 | 16 |
| 2 | 3 | 2 | 6 | 24 |
| 2 | 5 | 2 | 6 | 40 |
| 3 | 3 | 2 | 6 | 80 |
| 3 | 5 | 1 | 6 | 112 |
| 4 | 5 | 2 | 6 | 192 |
| 1 | 3 | 1 | 6 | 320 |
| head convolution | 1 | 1 | | 1280 |

Convolutions have no bias and are padded as TensorFlow does: where a stride leaves an
odd pixel, it is at the right and at the bottom. Departs from the release in training:
blocks are not dropped at random; only the top has dropout.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.layers import BatchNorm, Conv, Dense, Dropout

# Number of blocks, kernel, first stride, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Of `block_taps`: the stages, from 0, whose blocks give their outputs, and those that
# give the wide maps, too. Earlier wide maps are large, and the last stage made a
# regression on the taps worse on validation pictures (docs/results.md).
_BLOCKS, _WIDE = range(6), range(3, 6)
BLOCKS = sum(number for number, *_ in _STAGES)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0; 3,371,008 parameters and 42,016 statistics without its top.

    Attributes:
      num_classes: None returns the feature map after the head convolution.
      axis_name: the pmapped axis of the global batch.
      taps: whether the feature map comes with those of smaller depths: a tuple, of
        which it is the last.
      block_taps: of a tuple, whether it has, in place of one map of each stage, the
        output of every block of the first six, and of the later three of these the
        wide maps inside the blocks, too.
    """

    num_classes: int | None = None
    axis_name: str | None = None
    taps: bool = False
    block_taps: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
          images: [batch, height, width, 3] float32 in [-1, 1].
          train: whether the batch normalises itself, and dropout is on.

        Returns:
          Logits [batch, num_classes], or the feature map: [batch, 2, 2, 1280] at 64x64,
          a pixel for each 32.
        """

        def layer(x, features, kernel, stride, name, groups=1):
            conv = Conv(
                features,
                (kernel, kernel),
                stride,
                use_bias=False,
                feature_group_count=groups,
                name=name,
            )
            return norm(name=f"{name}_bn")(conv(x))

        norm = functools.partial(
            BatchNorm, use_running_average=not train, axis_name=self.axis_name
        )
        x = nn.relu6(layer(images, 32, 3, 2, "stem"))
        maps, block = [x], 0
        for stage, (number, kernel, first_stride, expansion, features) in enumerate(
            _STAGES
        ):
            for i in range(number):
                shortcut, name = x, f"block{block}"
                stride, block = first_stride if i == 0 else 1, block + 1
                inner = expansion * x.shape[-1]
                if expansion > 1:
                    x = nn.relu6(layer(x, inner, 1, 1, f"{name}_expand"))
                    if self.block_taps and stage in _WIDE:
                        maps.append(x)
                x = layer(x, inner, kernel, stride, f"{name}_depthwise", inner)
                x = layer(nn.relu6(x), features, 1, 1, f"{name}_project")
                if x.shape == shortcut.shape:
                    x = x + shortcut
                last = i == number - 1
                if stage in _BLOCKS if self.block_taps else last:
                    maps.append(x)
        x = nn.relu6(layer(x, 1280, 1, 1, "head"))
        if self.num_classes is None:
            return (*maps, x) if self.taps else x
        x = jnp.mean(x, axis=(1, 2))
        x = Dropout(0.2, self.axis_name)(x, train=train)
        return Dense(self.num_classes, name="predictions")(x)
