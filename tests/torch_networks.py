"""The PyTorch networks whose weights are imported, with their state-dict names.

SqueezeNet 1.1 as torchvision names its layers, Xception as timm's legacy_xception does.
Import after `pytest.importorskip("torch")`.
"""

import itertools

import numpy as np
import torch
from torch import nn


class Fire(nn.Module):
    def __init__(self, inputs, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(nn.Module):
    """`features` is the feature map, the module's output the logits."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, num_classes, 1), nn.ReLU()
        )

    def forward(self, x):
        return self.classifier(self.features(x)).mean((2, 3))


class SeparableConv2d(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x):
        return self.pointwise(self.conv1(x))


class Block(nn.Module):
    """ReLU, separable convolution and BN for each width, then a pool if strided."""

    def __init__(self, widths, stride=1, first_relu=True):
        super().__init__()
        self.strided = stride > 1
        if self.strided:
            self.skip = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(widths[-1])
        layers = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.ReLU(), SeparableConv2d(inputs, outputs)]
            layers += [nn.BatchNorm2d(outputs)]
        if not first_relu:
            layers = layers[1:]
        if self.strided:
            layers += [nn.MaxPool2d(3, stride, 1)]
        self.rep = nn.Sequential(*layers)

    def forward(self, x):
        return self.rep(x) + (self.skipbn(self.skip(x)) if self.strided else x)


class Xception(nn.Module):
    """`features` gives the feature map, the module's output the logits."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.block1 = Block((64, 128, 128), 2, first_relu=False)
        self.block2 = Block((128, 256, 256), 2)
        self.block3 = Block((256, 728, 728), 2)
        for index in range(4, 12):
            self.add_module(f"block{index}", Block((728,) * 4))
        self.block12 = Block((728, 728, 1024), 2)
        self.conv3 = SeparableConv2d(1024, 1536)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = SeparableConv2d(1536, 2048)
        self.bn4 = nn.BatchNorm2d(2048)
        self.fc = nn.Linear(2048, num_classes)

    def features(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        for index in range(1, 13):
            x = getattr(self, f"block{index}")(x)
        x = self.bn3(self.conv3(x)).relu()
        return self.bn4(self.conv4(x)).relu()

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def randomise(network, seed=0):
    """Random weights that keep activations near 1, and statistics that are no identity.

    Returns the network, ready for inference.
    """
    rng = np.random.default_rng(seed)
    state = network.state_dict()
    # He's gain where nothing normalises.
    gain = 1 if any(name.endswith("running_var") for name in state) else 2
    for name, tensor in state.items():
        if tensor.ndim > 1:
            scale = np.sqrt(gain / np.prod(tensor.shape[1:]))
            values = rng.normal(0, scale, tensor.shape)
        elif name.endswith(("running_var", "weight")):
            values = rng.uniform(0.5, 1.5, tensor.shape)
        elif tensor.ndim == 1:
            values = rng.normal(0, 0.2, tensor.shape)
        else:  # num_batches_tracked
            continue
        tensor.copy_(torch.from_numpy(np.asarray(values, np.float32)))
    return network.eval().requires_grad_(False)


def run(network, images):
    """Feature map and logits of NHWC `images`, as NHWC arrays."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        features, logits = network.features(x), network(x)
    return features.numpy().transpose(0, 2, 3, 1), logits.numpy()
