"""What gives the answer away: pictures seen twice, and properties of files.

Pure functions of where each image is and what a scan found of it, and the hashes that
pictures are compared by.
"""

import collections
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from fdftnet_jax.data.splits import CLASSES, Example

# The split that keeps a picture, first to last: what trains never depends on what is
# in a split that judges.
KEEPERS = ("train", "finetune", "validation", "test")
# The largest number of the 64 bits of a perceptual hash in which near-twins differ. All
# of 150 re-encoded (JPEG quality 20) or halved photographs of faces are within 2 bits;
# no two of 1,750 different people are within 4. (The number is always even.)
NEAR = 2
# Near-twins that are listed at most.
MOST_TWINS = 10_000
# The side at which a picture gets its perceptual hash, as `imagehash.phash` does.
_SMALL = 32
# Grey values (0..255): what is left of a picture without its stripes, as a standard
# deviation. Below, the signs that the hash is made of are those of noise.
_PLAIN = 2.0
# The AUROC from which on a property is reported; far from what a fair set gives by
# chance (see `Shortcut.noise`), near enough for a network to prefer it to the forgery.
SUSPICIOUS = 0.7


class Finding(NamedTuple):
    """Result of inspecting a file."""

    # Why it is left out; '' for an image that is used, which alone has the rest.
    reason: str
    # Of the decoded pixels and their shape; see `digest`.
    digest: str = ""
    # 64 bits in hexadecimal; '' for a plain picture. See `perceptual_hash`.
    phash: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    # Of a JPEG, in 1..100.
    quality: int | None = None


def digest(pixels: np.ndarray) -> str:
    """SHA-256, in hexadecimal, of an image [h, w, 3] uint8 and its shape."""
    content = hashlib.sha256(repr(pixels.shape).encode())
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()


def perceptual_hash(pixels: np.ndarray) -> str:
    """The 64 signs of an image's lowest frequencies, which survive re-encoding.

    Args:
      pixels: [h, w, 3] uint8.

    Returns:
      16 hexadecimal digits, or '' for a picture of one colour or of plain stripes,
      which has too few frequencies.
    """
    size = (_SMALL, _SMALL)
    grey = Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.LANCZOS)
    values = np.asarray(grey, np.float64)
    stripes = values.mean(axis=0) + values.mean(axis=1)[:, None] - values.mean()
    if (values - stripes).std() < _PLAIN:
        return ""
    return np.packbits(imagehash.phash(grey).hash).tobytes().hex()


class Placed(NamedTuple):
    """An image and where it is."""

    split: str
    example: Example
    finding: Finding


def placed(
    splits: Mapping[str, Sequence[Example]], findings: Mapping[str, Finding]
) -> list[Placed]:
    """Lists the images of all splits with their findings, which are given by path."""
    return [
        Placed(split, example, findings[example.path])
        for split, examples in splits.items()
        for example in examples
    ]


class Duplicates(NamedTuple):
    """The images that show one picture, among them two that must not.

    Attributes:
      images: those of `kept` first, then by path.
      kept: the paths that stay where the others are dropped.
    """

    images: list[Placed]
    kept: frozenset[str]


def duplicates(
    images: Iterable[Placed], *, across_splits: bool = True
) -> list[Duplicates]:
    """Finds pictures that are in both classes or in two splits.

    A picture that is there twice in one class of one split is no leak. What is kept of
    a leak does not depend on later splits (in the order of `KEEPERS`): all images of
    the first split that has any, or, where they are in both classes, the first path.

    Args:
      images: all images of a data set.
      across_splits: whether two splits must not share a picture.

    Returns:
      The leaks, sorted by their first image's path.
    """
    by_digest = collections.defaultdict(list)
    for image in images:
        by_digest[image.finding.digest].append(image)
    found = []
    for same in by_digest.values():
        classes = {image.example.label for image in same}
        splits = {image.split for image in same}
        if len(classes) > 1 or (across_splits and len(splits) > 1):
            first = min(splits, key=KEEPERS.index)
            kept = sorted(i.example for i in same if i.split == first)
            if len({example.label for example in kept}) > 1:
                kept = kept[:1]
            paths = frozenset(example.path for example in kept)
            same.sort(key=lambda i: (i.example.path not in paths, i.example.path))
            found.append(Duplicates(same, paths))
    return sorted(found, key=lambda leak: leak.images[0].example.path)


class Twins(NamedTuple):
    """Two images of different splits that look alike.

    Attributes:
      first: the image whose path comes first.
      second: the other.
      distance: the number of different bits of their perceptual hashes.
    """

    first: Placed
    second: Placed
    distance: int


def near_twins(
    images: Sequence[Placed], distance: int = NEAR, most: int = MOST_TWINS
) -> list[Twins]:
    """Finds images of different splits whose perceptual hashes are near.

    Plain pictures have no hash and no twins; the same picture is left to `duplicates`.

    Args:
      images: all images of a data set.
      distance: the largest number of different bits.
      most: the search ends here.

    Returns:
      At most `most` pairs, sorted by path.
    """
    # One entry for all images of a split that share a hash.
    entries = collections.defaultdict(list)
    for image in images:
        if image.finding.phash:
            entries[int(image.finding.phash, 16), image.split].append(image)
    keys = list(entries)
    hashes = np.array([key[0] for key in keys], np.uint64)
    _, splits = np.unique([key[1] for key in keys], return_inverse=True)
    found: set[tuple[int, int]] = set()
    # Hashes that differ in d bits agree in one of d + 1 bands of their bits at least.
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in itertools.pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(band, kind="stable")
        band = band[order]
        # Each entry with its next, second next ... as long as they share the band.
        left, step = np.arange(len(order)), 1
        while len(left) and len(found) < most:
            left = left[left + step < len(order)]
            left = left[band[left] == band[left + step]]
            a, b = order[left], order[left + step]
            near = np.bitwise_count(hashes[a] ^ hashes[b]) <= distance
            near &= splits[a] != splits[b]
            pairs = np.sort(np.stack([a[near], b[near]], axis=1), axis=1)
            found.update(map(tuple, pairs.tolist()))
            step += 1
    twins = (
        Twins(*_by_path(first, second), (hashes[a] ^ hashes[b]).item().bit_count())
        for a, b in sorted(found)
        for first, second in itertools.product(entries[keys[a]], entries[keys[b]])
        if first.finding.digest != second.finding.digest
    )
    listed = itertools.islice(twins, most)
    return sorted(listed, key=lambda t: (t.first.example.path, t.second.example.path))


def _by_path(first: Placed, second: Placed) -> tuple[Placed, Placed]:
    if first.example.path > second.example.path:
        return second, first
    return first, second


class Shortcut(NamedTuple):
    """A property of the files, and how well it alone separates real from fake.

    Attributes:
      name: of the property.
      auroc: in [0.5, 1], of the better of two rules: the share of fakes among the
        other half's images with the same value (the halves are drawn by group, so that
        a value seen once separates nothing), or the value's own size.
      noise: the standard error of the AUROC of a property that says nothing.
      images: number of images that have the property.
      real: the most frequent value among the real images.
      fake: the same among the fake images.
    """

    name: str
    auroc: float
    noise: float
    images: int
    real: str
    fake: str

    @property
    def suspicious(self) -> bool:
        """Whether it is to be reported: high, and not by chance."""
        return self.auroc >= max(SUSPICIOUS, 0.5 + 4 * self.noise)


def shortcuts(images: Sequence[Placed]) -> list[Shortcut]:
    """Measures how well format, size and JPEG quality tell the classes apart.

    Properties that only one class has are left out: the format tells those apart.
    """
    jpegs = [i for i in images if i.finding.quality is not None]
    sizes = [(i.finding.width, i.finding.height) for i in images]
    measured = [
        _shortcut("file format", images, [i.finding.format for i in images], []),
        _shortcut(
            "size in pixels",
            images,
            [f"{width}x{height}" for width, height in sizes],
            [[w for w, _ in sizes], [h for _, h in sizes], [w * h for w, h in sizes]],
        ),
        _shortcut(
            "JPEG quality",
            jpegs,
            [str(i.finding.quality) for i in jpegs],
            [[i.finding.quality for i in jpegs]],
        ),
    ]
    return [shortcut for shortcut in measured if shortcut]


def _shortcut(
    name: str,
    images: Sequence[Placed],
    values: Sequence[str],
    numbers: Sequence[Sequence],
) -> Shortcut | None:
    labels = np.array([image.example.label for image in images], int)
    counts = np.bincount(labels, minlength=2)
    if not counts.all():
        return None
    half = np.array([_half(image.example.group) for image in images])
    codes = np.unique(values, return_inverse=True)[1]
    parts = [
        _auroc(_shares(codes, labels, half != h)[half == h], labels[half == h])
        for h in (0, 1)
    ]
    scores = [float(np.mean(parts))]
    for column in numbers:
        direct = _auroc(np.array(column), labels)
        scores += [direct, 1 - direct]
    common = [
        collections.Counter(
            value for value, label in zip(values, labels, strict=True) if label == c
        ).most_common(1)[0][0]
        for c in range(len(CLASSES))
    ]
    noise = float(np.sqrt((counts.sum() + 1) / (12 * counts.prod())))
    return Shortcut(name, max(0.5, *scores), noise, len(images), *common)


def _half(group: str) -> int:
    return hashlib.sha256(group.encode()).digest()[0] % 2


def _shares(codes: np.ndarray, labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The share of fakes among the `known` images with each image's value, [n]."""
    size = codes.max() + 1
    total = np.bincount(codes[known], minlength=size)
    fakes = np.bincount(codes[known], labels[known], minlength=size)
    overall = labels[known].mean() if known.any() else 0.5
    shares = np.divide(fakes, total, out=np.full(size, overall), where=total > 0)
    return shares[codes]


def _auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The probability that a fake has the higher score; ties count one half."""
    fakes = int(labels.sum())
    reals = len(labels) - fakes
    if not (fakes and reals):
        return 0.5
    from scipy import stats  # (It takes long to load.)

    ranks = stats.rankdata(scores)[labels == 1].sum()
    return float((ranks - fakes * (fakes + 1) / 2) / (fakes * reals))
