"""The paper's `pggan`: real faces from CelebA, fakes by a progressively grown GAN.

    DIR/celeba/img_align_celeba/000001.jpg      CelebA, aligned and cropped
    DIR/celeba/identity_CelebA.txt              who is on it: the groups
    DIR/celeba/list_eval_partition.txt          CelebA's own splits
    DIR/pggan/**/*.png                          PGGAN's images, or .jpg

The two lists may be missing. Without the first, every image is a group of its own.
Without the second, the splits are drawn by the hash of the groups, as those of PGGAN's
images always are. CelebA's own splits are taken where they are given: they are what
others compare on, and keep people apart. An image of a person that has more of them in
another official split is left out, and so is an image that a list lacks.

Z. Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015; T. Karras et al.,
Progressive Growing of GANs for Improved Quality, Stability, and Variation, ICLR 2018.
"""

import collections
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from fdftnet_jax import files
from fdftnet_jax.data import splits
from fdftnet_jax.data.splits import SPLITS
from fdftnet_jax.errors import UserError
from fdftnet_jax.paper_sets import layouts
from fdftnet_jax.paper_sets.layouts import OFFICIAL, Place, nowhere

_CELEBA = "celeba/img_align_celeba"
_IDENTITIES = "celeba/identity_CelebA.txt"
_PARTITIONS = "celeba/list_eval_partition.txt"


def read(root: Path, fractions: Mapping[str, float]) -> layouts.Layout:
    """Sorts the images of CelebA and PGGAN into splits.

    Args:
      root: DIR of this module's docstring.
      fractions: see `splits.split_of`; for CelebA's own splits, see
        `layouts.within_training`.

    Raises:
      UserError: if a folder is missing or without images, or a list is none.
      OSError: if something cannot be read.
    """
    folders = (_CELEBA, "pggan")
    found = [layouts.images_in(root, folder) for folder in folders]
    if lacking := [f for f, paths in zip(folders, found, strict=True) if not paths]:
        raise UserError(
            f"expected pggan in {root} to be {_CELEBA}/*.jpg (CelebA's aligned images; "
            f"where you have them, {_IDENTITIES} and {_PARTITIONS}) and "
            f"pggan/**/*.png or .jpg (PGGAN's images), found no image in "
            f"{' and in '.join(lacking)}; put them there"
        )
    people, partitions = _celeba_lists(root)
    main = _main_partitions(people or {}, partitions or {})

    def real(path: str) -> Place:
        image = PurePosixPath(path)
        group = f"celeba/{files.as_utf8(image.stem)}"
        if people is not None:
            if image.stem not in people:
                return nowhere(f"not in {_IDENTITIES}")
            group = f"celeba/{people[image.stem]}"
        if partitions is None:
            return Place(splits.split_of(group, fractions), group)
        if image.stem not in partitions:
            return nowhere(f"not in {_PARTITIONS}")
        split = OFFICIAL[int(partitions[image.stem])]
        if people is not None and split != main[people[image.stem]]:
            return nowhere("its person is mostly in another official split")
        return Place(layouts.within_training(split, group, fractions), group)

    def fake(path: str) -> Place:
        group = files.as_utf8(str(PurePosixPath(path).with_suffix("")))
        return Place(splits.split_of(group, fractions), group)

    sorter = layouts.Sorter("pggan")
    for label, (place, paths) in enumerate(zip((real, fake), found, strict=True)):
        for path in paths:
            sorter.add(path, label, [path], place(path))
    return sorter.layout(s for s in SPLITS if fractions.get(s, 0) > 0)


def _celeba_lists(root: Path) -> tuple[dict[str, str] | None, dict[str, str] | None]:
    """Image -> person, and image -> partition; None for a list that is not there."""
    people = _celeba_list(root / _IDENTITIES, r"\d+", "a person's number")
    return people, _celeba_list(root / _PARTITIONS, "[012]", "0, 1 or 2")


def _celeba_list(path: Path, pattern: str, what: str) -> dict[str, str] | None:
    """Image -> value of a list of CelebA, lines such as `000001.jpg 2880`.

    Images are known by their names without suffix: they may have been re-encoded.
    """
    if not path.is_file():
        return None
    values = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        words = line.split()
        if words and not (len(words) == 2 and re.fullmatch(pattern, words[1])):
            raise UserError(
                f"expected lines of an image and {what} in {path}, such as "
                f"'000001.jpg 1', found {line[:50]!r} in line {number}; get the file "
                "anew from CelebA"
            )
        if words:
            values[PurePosixPath(words[0]).stem] = words[1]
    return values


def _main_partitions(
    people: Mapping[str, str], partitions: Mapping[str, str]
) -> dict[str, str]:
    """Person -> the official split that has most of its images, the first of equals."""
    numbers: dict[str, list[int]] = collections.defaultdict(lambda: [0] * 3)
    for image, person in people.items():
        if image in partitions:
            numbers[person][int(partitions[image])] += 1
    return {p: OFFICIAL[found.index(max(found))] for p, found in numbers.items()}
