"""FaceForensics++'s `deepfakes` and `face2face`, and its neighbour `dfd`, as faces.

The faces are cut out of the videos by `experiments.prepare_faces`: each video becomes a
folder of images, in the place that the video has in the original tree.

    DIR/original_sequences/youtube/c23/videos/071/*.png
    DIR/manipulated_sequences/Deepfakes/c23/videos/071_054/*.png      (or Face2Face)
    DIR/train.json, val.json, test.json         the official pairs; or in DIR/splits/

    DIR/original_sequences/actors/c23/videos/01__exit_phone_room/*.png
    DIR/manipulated_sequences/DeepFakeDetection/c23/videos/01_02__exit_.../*.png

FaceForensics++ swaps faces within pairs of videos, both ways; a group is a pair.
Without the official lists, the names of all fakes in DIR say which videos belong
together. What the lists do not know is left out.

`dfd` swaps each of 28 actors with many others. So the actors are dealt to the splits by
the hash, and a fake of two actors that were dealt apart is left out.

A. Roessler et al., FaceForensics++: Learning to Detect Manipulated Facial Images, ICCV
2019; J. Thies et al., Face2Face, CVPR 2016; N. Dufour and A. Gully, Contributing Data
to Deepfake Detection Research, Google AI Blog 2019 (with Jigsaw).
"""

import collections
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from scipy.cluster.hierarchy import DisjointSet

from fdftnet_jax.data import splits
from fdftnet_jax.data.splits import SPLITS
from fdftnet_jax.errors import UserError
from fdftnet_jax.paper_sets import layouts
from fdftnet_jax.paper_sets.layouts import OFFICIAL, Place, nowhere

COMPRESSIONS = ("raw", "c23", "c40")
# Set -> the folders of its real and of its fake videos; in each, `<c>/videos`.
_VIDEOS = {
    "deepfakes": ("original_sequences/youtube", "manipulated_sequences/Deepfakes"),
    "face2face": ("original_sequences/youtube", "manipulated_sequences/Face2Face"),
    "dfd": ("original_sequences/actors", "manipulated_sequences/DeepFakeDetection"),
}
NAMES = tuple(_VIDEOS)
# Split -> the names that its list may have.
_LISTS = {
    "train": ("train.json",),
    "validation": ("val.json", "validation.json"),
    "test": ("test.json",),
}
_MOVIES = {".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm"}


def read(
    root: Path, name: str, compression: str, fractions: Mapping[str, float]
) -> layouts.Layout:
    """Sorts the faces of a set into splits.

    Args:
      root: DIR of this module's docstring.
      name: one of `NAMES`.
      compression: of the videos, one of `COMPRESSIONS`.
      fractions: see `splits.split_of`; for the official splits, see
        `layouts.within_training`.

    Raises:
      UserError: if a folder is missing or without images, or holds videos, or if a
        list is none or puts a video into two splits.
      OSError: if something cannot be read.
    """
    folders = [f"{folder}/{compression}/videos" for folder in _VIDEOS[name]]
    found = [layouts.images_in(root, folder) for folder in folders]
    if not all(found):
        lacking = [f for f, paths in zip(folders, found, strict=True) if not paths]
        raise _no_crops(root, name, compression, lacking)
    expected = [split for split in SPLITS if fractions.get(split, 0) > 0]
    place: Callable[[str, int], Place]
    if name == "dfd":
        place = functools.partial(_place_actors, fractions)
    else:
        pairs = _official_pairs(root)
        place = _pair_placing(root, pairs, fractions)
        if pairs is not None:
            expected = [s for s in SPLITS if s in (*OFFICIAL, *expected)]
    sorter = layouts.Sorter(name)
    for label, (folder, paths) in enumerate(zip(folders, found, strict=True)):
        videos: dict[str, list[str]] = collections.defaultdict(list)
        for path in paths:
            inner = path.removeprefix(f"{folder}/")
            video, below, _ = inner.partition("/")
            if below:
                videos[video].append(path)
            else:
                reason = "not in the folder of a video"
                sorter.add(path, label, [path], nowhere(reason))
        for video, own in videos.items():
            sorter.add(f"{folder}/{video}", label, own, place(video, label))
    return sorter.layout(expected)


def _no_crops(root: Path, name: str, compression: str, lacking: list[str]) -> UserError:
    """The error for a set whose real or fake faces are not there."""
    command = "python -m experiments.prepare_faces"
    for folder in lacking:
        for path in layouts.files(root, folder):
            if PurePosixPath(path).suffix.lower() in _MOVIES:
                return UserError(
                    f"expected images of faces in {root / folder}, found videos "
                    f"({PurePosixPath(path).name}); cut the faces out with "
                    f"`{command} --input={root} --output=DIR`, then give "
                    "--config.data.dir=DIR"
                )
    others = [
        other
        for other in COMPRESSIONS
        if other != compression
        and all((root / f / other / "videos").is_dir() for f in _VIDEOS[name])
    ]
    real, fake = (f"{folder}/{compression}/videos" for folder in _VIDEOS[name])
    return UserError(
        f"expected {name} in {root} to be images of faces, {real}/VIDEO/*.png "
        f"and {fake}/VIDEO/*.png, found none in {' and in '.join(lacking)}"
        + (f" (but there is --config.data.compression={others[0]})" if others else "")
        + f"; download the videos, then cut the faces out with `{command} "
        f"--input=VIDEOS --output={root}`"
    )


def _place_actors(fractions: Mapping[str, float], video: str, label: int) -> Place:
    """Place of a video of `dfd`, such as 01_02__hugging_happy__ABC."""
    match = re.match(r"(\d+)_(\d+)__" if label else r"(\d+)__", video)
    if not match:
        return nowhere("a name that does not tell its actors")
    found = {splits.split_of(f"dfd/{actor}", fractions) for actor in match.groups()}
    if len(found) > 1:
        return nowhere("two actors of different splits")
    return Place(found.pop(), "dfd/" + "_".join(sorted(set(match.groups()))))


def _pair_placing(
    root: Path,
    official: Mapping[tuple[str, str], str] | None,
    fractions: Mapping[str, float],
) -> Callable[[str, int], Place]:
    """Says how videos of FaceForensics++ are placed, such as 071 or 071_054."""
    together = DisjointSet()
    for pair in official if official is not None else _swapped(root):
        for video in pair:
            together.add(video)
        together.merge(*pair)
    groups = {
        video: "_".join(sorted(subset))
        for subset in together.subsets()
        for video in subset
    }
    given: dict[str, str] = {}
    for pair, split in (official or {}).items():
        group = groups[pair[0]]
        if given.setdefault(group, split) != split:
            raise UserError(
                f"expected every video in one official split, found the pair {pair} "
                f"in {split}, and one of its videos in {given[group]}; get the lists "
                "of FaceForensics++ anew"
            )

    def place(video: str, label: int) -> Place:
        if not re.fullmatch(r"\d+_\d+" if label else r"\d+", video):
            return nowhere("a name that does not tell its videos")
        ids = video.split("_")
        if official is None:
            group = groups.get(ids[0], video)
            return Place(splits.split_of(group, fractions), group)
        if not groups.keys() >= set(ids):
            return nowhere("not in the official splits")
        group, *other = {groups[i] for i in ids}
        if other:
            return nowhere("two videos of different pairs")
        return Place(layouts.within_training(given[group], group, fractions), group)

    return place


def _swapped(root: Path) -> list[tuple[str, str]]:
    """The pairs of videos in the names of all fakes, whatever made them.

    All of them, so that `deepfakes` and `face2face` in one folder are split alike.
    """
    fakes = root.glob("manipulated_sequences/*/*/videos/*")
    matches = (re.fullmatch(r"(\d+)_(\d+)", fake.name) for fake in sorted(fakes))
    return [(match[1], match[2]) for match in matches if match]


def _official_pairs(root: Path) -> dict[tuple[str, str], str] | None:
    """Pair -> split, or None where there are no lists."""
    found: dict[str, Path] = {}
    for split, names in _LISTS.items():
        places = [place / name for place in (root, root / "splits") for name in names]
        if place := next((place for place in places if place.is_file()), None):
            found[split] = place
    if not found:
        return None
    if lacking := [_LISTS[split][0] for split in _LISTS if split not in found]:
        raise UserError(
            f"expected train.json, val.json and test.json in {root}, found no "
            f"{' and no '.join(lacking)}; add what is missing, or remove the others"
        )
    pairs: dict[tuple[str, str], str] = {}
    for split, path in found.items():
        try:
            listed = json.loads(path.read_text(errors="replace"))
        except ValueError:
            listed = None
        valid = isinstance(listed, list) and all(map(_is_pair, listed))
        if not (valid and listed):
            raise UserError(
                f'expected pairs of videos such as [["071", "054"]] in {path}, found '
                "something else; get the lists of FaceForensics++ anew"
            )
        for first, second in listed:
            if pairs.setdefault((first, second), split) != split:
                raise UserError(
                    f"expected the pair {first}, {second} in one official split, found "
                    f"it in {pairs[first, second]} and in {split}; get the lists of "
                    "FaceForensics++ anew"
                )
    return pairs


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(video, str) for video in value)
    )
