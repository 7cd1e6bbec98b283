"""FDFtNet (Jeon, Bang, Woo 2020, Fig. 1): a backbone and the two branches beside it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.fine_tune_transformer import FineTuneTransformer
from fdftnet_jax.models.layers import BatchNorm, Dense, depth_statistics
from fdftnet_jax.models.mobilenet_v3 import MobileNetHead


class FDFtNet(nn.Module):
    """Adds MBblockV3 on the backbone's features to the Fine-Tune Transformer's output.

    Attributes:
      backbone: a module `(images, *, train) -> [batch, h, w, channels]`, or with `taps`
        a tuple of such maps, of which the last is that of Fig. 1.
      num_blocks: N, the number of MBblockV3.
      num_stages: M, the number of stages of the Fine-Tune Transformer; with 0 there is
        no such branch (Table 6).
      first_stride: stride of the first MBblockV3.
      ftt_size: side to which the Fine-Tune Transformer's images are reduced where they
        are larger, so that its attention does not grow with the picture; 0 for never.
      taps: whether the mean and deviation of the backbone's maps of several depths are
        classified, too, each normalised over the batch.
      num_classes: of the logits.
      axis_name: the pmapped axis of the global batch, for batch statistics.
    """

    backbone: nn.Module
    num_blocks: int = 4
    num_stages: int = 3
    first_stride: int = 1
    ftt_size: int = 0
    taps: bool = False
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
            batch, height, width, channels = images.shape
            if 0 < self.ftt_size < min(height, width):
                # Each pixel is a mean, weighted by a triangle, of those it stands for.
                sides = (batch, self.ftt_size, self.ftt_size, channels)
                images = jax.image.resize(images, sides, "linear")
            x += FineTuneTransformer(
                self.num_stages, axis_name=self.axis_name, name="fine_tune_transformer"
            )(images, train=train)
        if self.taps:
            norm = BatchNorm(
                use_running_average=not train, axis_name=self.axis_name, name="taps_bn"
            )
            x = jnp.concatenate([x, norm(depth_statistics(maps))], axis=-1)
        return Dense(self.num_classes, name="classifier")(x)
