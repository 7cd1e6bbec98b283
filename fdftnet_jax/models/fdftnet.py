"""FDFtNet (Jeon, Bang, Woo 2020, Fig. 1): a backbone and the two branches beside it.

Beyond the paper, a logistic regression on the features of the backbone as it was before
training can stand beside all of it. The two err on different pictures, and their sum
finds more than either (docs/results.md).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.fine_tune_transformer import FineTuneTransformer
from fdftnet_jax.models.layers import BatchNorm, Dense, depth_statistics
from fdftnet_jax.models.mobilenet_v3 import MobileNetHead
from fdftnet_jax.ops import residuals

VIEWS = ("whole", "window")


def transformer_view(images: jax.Array, size: int, view: str) -> jax.Array:
    """What the Fine-Tune Transformer sees of pictures.

    Args:
      images: [batch, height, width, channels].
      size: side of the result where the pictures are larger; 0 for their own.
      view: one of `VIEWS`.

    Returns:
      [batch, size, size, channels], or `images`.
    """
    batch, height, width, channels = images.shape
    if not 0 < size < min(height, width):
        return images
    if view == "window":
        top, left = (height - size) // 2, (width - size) // 2
        return images[:, top : top + size, left : left + size]
    # Each pixel is a mean, weighted by a triangle, of those it stands for.
    return jax.image.resize(images, (batch, size, size, channels), "linear")


class FDFtNet(nn.Module):
    """Adds MBblockV3 on the backbone's features to the Fine-Tune Transformer's output.

    Attributes:
      backbone: a module `(images, *, train) -> [batch, h, w, channels]`, or with `taps`
        a tuple of such maps, of which the last is that of Fig. 1.
      num_blocks: N, the number of MBblockV3.
      num_stages: M, the number of stages of the Fine-Tune Transformer; with 0 there is
        no such branch (Table 6).
      first_stride: stride of the first MBblockV3.
      ftt_size: side of the Fine-Tune Transformer's images where the pictures are
        larger, so that its attention does not grow with them; 0 for their own.
      ftt_view: 'whole' reduces the picture to that size, 'window' cuts its centre.
      ftt_filter: of these images, a key of `residuals.FILTERS`; '' for none.
      taps: whether the mean and deviation of the backbone's maps of several depths are
        classified, too, each normalised over the batch.
      block_taps: whether the last of these, the feature map, is left out of them.
      regression: a module `(images, *, train) -> logits` on a backbone of its own,
        whose logits are added; None for none. (The rest is trained without it, as if
        it were alone.)
      num_classes: of the logits.
      axis_name: the pmapped axis of the global batch, for batch statistics.
    """

    backbone: nn.Module
    num_blocks: int = 4
    num_stages: int = 3
    first_stride: int = 1
    ftt_size: int = 0
    ftt_view: str = "whole"
    ftt_filter: str = ""
    taps: bool = False
    block_taps: bool = False
    regression: nn.Module | None = None
    num_classes: int = 2
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, train_backbone: bool = False
    ) -> jax.Array:
        """Classifies images.

        Args:
          images: [batch, height, width, 3] float32 in [-1, 1].
          train: whether the new branches use the batch's own statistics.
          train_backbone: whether the backbone does, too, with its dropout on; a frozen
            backbone runs as in inference.

        Returns:
          Logits [batch, num_classes].
        """
        features = self.backbone(images, train=train and train_backbone)
        maps = features if self.taps else (features,)
        x = MobileNetHead(
            self.num_blocks,
            self.first_stride,
            axis_name=self.axis_name,
            name="mobilenet_head",
        )(maps[-1], train=train)
        if self.num_stages:
            pixels = transformer_view(images, self.ftt_size, self.ftt_view)
            if self.ftt_filter:
                pixels = residuals.FILTERS[self.ftt_filter](pixels)
            x += FineTuneTransformer(
                self.num_stages, axis_name=self.axis_name, name="fine_tune_transformer"
            )(pixels, train=train)
        if self.taps:
            norm = BatchNorm(
                use_running_average=not train, axis_name=self.axis_name, name="taps_bn"
            )
            tapped = maps[:-1] if self.block_taps else maps
            x = jnp.concatenate([x, norm(depth_statistics(tapped))], axis=-1)
        logits = Dense(self.num_classes, name="classifier")(x)
        if self.regression is not None:
            logits += self.regression(images, train=False)
        return logits
