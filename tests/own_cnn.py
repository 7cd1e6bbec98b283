"""A network that the package has never seen, as a user would write it."""

import flax.linen as nn


class OwnCNN(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = images
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), strides=2)(x)
            x = nn.BatchNorm(not train, axis_name=self.axis_name)(x)
            x = nn.relu(x)
        return x
