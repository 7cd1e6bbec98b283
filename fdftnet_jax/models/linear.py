"""A backbone under one dense layer: what the fine-tuned network is measured against.

With the backbone frozen it is a linear probe of its features, or with taps a probe of
those of several depths; with all of it trained, full fine-tuning.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdftnet_jax.models.layers import Dense, depth_statistics


class LinearClassifier(nn.Module):
    """Classifies the mean of the backbone's feature map.

    Attributes:
      backbone: a module `(images, *, train) -> [batch, h, w, channels]`, or with `taps`
        a tuple of such maps.
      taps: whether to classify the mean and deviation of each of several depths.
      block_taps: whether the last of these, the feature map, is left out.
      num_classes: of the logits; None returns what would be classified.
    """

    backbone: nn.Module
    taps: bool = False
    block_taps: bool = False
    num_classes: int | None = 2

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, train_backbone: bool = False
    ) -> jax.Array:
        """Classifies images.

        Args:
          images: [batch, height, width, 3] float32 in [-1, 1].
          train: whether the network is being trained.
          train_backbone: whether the backbone is, too: with the batch's own statistics
            and dropout.

        Returns:
          Logits [batch, num_classes].
        """
        features = self.backbone(images, train=train and train_backbone)
        if self.taps:
            x = depth_statistics(features[:-1] if self.block_taps else features)
        else:
            x = jnp.mean(features, (1, 2))
        if self.num_classes is None:
            return x
        return Dense(self.num_classes, name="classifier")(x)
