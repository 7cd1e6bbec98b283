"""MBblockV3 of FDFtNet (section 3.4, Table 3), after MobileNetV3 (Howard et al. 2019).

Departs from the released Keras code, as the paper's table does: the excitation
multiplies the output of the depthwise convolution, and every kernel is 3x3.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.layers import BatchNorm, Conv, hard_sigmoid, hard_swish


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from its mean (Hu et al. 2018)."""

    conv: Any
    reduced: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channels] -> the same shape."""
        gate = jnp.mean(x, axis=(1, 2), keepdims=True)
        gate = nn.relu(self.conv(self.reduced, (1, 1), name="reduce")(gate))
        gate = self.conv(x.shape[-1], (1, 1), name="expand")(gate)
        return x * hard_sigmoid(gate)


class MBBlockV3(nn.Module):
    """Inverted residual with linear bottleneck; 323,648 parameters from 128 channels.

    Attributes:
      conv: makes a convolution without bias.
      norm: makes a batch normalisation.
      stride: of the depthwise convolution; above 1 there is no residual.
      expanded: channels inside the block.
      features: channels of its output.
    """

    conv: Any
    norm: Any
    stride: int = 1
    expanded: int = 576
    features: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, channels] -> [batch, h / stride, w / stride, features]."""
        shortcut = x
        x = self.conv(self.expanded, (1, 1), name="expand")(x)
        x = hard_swish(self.norm(name="expand_bn")(x))
        x = self.conv(
            self.expanded,
            (3, 3),
            self.stride,
            feature_group_count=self.expanded,
            name="depthwise",
        )(x)
        x = self.norm(name="depthwise_bn")(x)
        x = SqueezeExcite(self.conv, self.expanded // 4, name="squeeze_excite")(x)
        x = self.conv(self.features, (1, 1), name="project")(hard_swish(x))
        x = self.norm(name="project_bn")(x)
        if self.stride == 1 and x.shape == shortcut.shape:
            x += shortcut
        return x


class MobileNetHead(nn.Module):
    """N blocks on a backbone's feature map, then a 1x1 convolution and pooling.

    Attributes:
      num_blocks: N, the number of MBblockV3.
      first_stride: stride of the first block; the others have 1.
      features: the width of the output.
      axis_name: the pmapped axis of the global batch, for batch statistics.
    """

    num_blocks: int = 4
    first_stride: int = 1
    features: int = 576
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Embeds feature maps, [batch, h, w, channels] -> [batch, features].

        `train` says whether the batch's own statistics are used.
        """
        conv = functools.partial(Conv, use_bias=False)
        norm = functools.partial(
            BatchNorm, use_running_average=not train, axis_name=self.axis_name
        )
        for index in range(1, self.num_blocks + 1):
            stride = self.first_stride if index == 1 else 1
            x = MBBlockV3(conv, norm, stride, name=f"block{index}")(x)
        x = conv(self.features, (1, 1), name="head")(x)
        x = hard_swish(norm(name="head_bn")(x))
        return jnp.mean(x, axis=(1, 2))
