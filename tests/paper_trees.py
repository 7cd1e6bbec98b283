"""Miniature trees of the paper's data sets."""

import hashlib
import json

import numpy as np
from PIL import Image

FRACTIONS = {"train": 0.4, "validation": 0.2, "test": 0.2, "finetune": 0.2}
YOUTUBE = "original_sequences/youtube/c23/videos"
ACTORS = "original_sequences/actors/c23/videos"
DEEPFAKES = "manipulated_sequences/Deepfakes/c23/videos"
FACE2FACE = "manipulated_sequences/Face2Face/c23/videos"
DFD = "manipulated_sequences/DeepFakeDetection/c23/videos"
CELEBA = "celeba/img_align_celeba"


def touch(root, *paths):
    """Files without content: layouts look at names alone."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def pictures(root, *paths, size=12):
    """A picture of noise in every file, which its path alone determines."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        seed = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:8], "big")
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(root / path)


def frames(folder, videos, number=1):
    """The paths of some faces of each video."""
    return [f"{folder}/{v}/{i:04d}_0.png" for v in videos for i in range(number)]


def swapped(pairs):
    """Both fakes of each pair of videos, such as 071_054 and 054_071."""
    return [name for a, b in pairs for name in (f"{a}_{b}", f"{b}_{a}")]


def write_lists(folder, lists, validation="val"):
    """The official lists, by split; that of the validation has one of two names."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, listed in lists.items():
        name = validation if split == "validation" else split
        (folder / f"{name}.json").write_text(json.dumps(listed))


def places(layout):
    """Path -> (split, group, label, generator) of every image that is not left out."""
    return {
        e.path: (split, e.group, e.label, e.generator)
        for split, examples in layout.examples.items()
        for e in examples
    }


def reasons(layout):
    return {left.path: left.reason for left in layout.left_out}
