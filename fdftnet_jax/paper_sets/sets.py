"""The data sets of the paper (section 3.1, Tables 4 and 5) as folders of images.

`pggan` is CelebA against PGGAN; `celeba_pggan` has its layout. `face2face` and
`deepfakes` are those parts of FaceForensics++, `dfd` is Google's and Jigsaw's set of
actors; `faceforensics` has their layouts. The paper's section 3.1 says that its
"Deepfakes" come from Google and Jigsaw, which is `dfd`. The code released with it reads
the part `Deepfakes` of FaceForensics++, and section 4.2 compares with the results
published on that part: it is `deepfakes`, which we take for the column of Table 5.

Half of Table 4's train, validation and test images of PGGAN are 99,035 of its 100,000
fakes: 35 too few are left to fine-tune on 1,000 others.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from fdftnet_jax.data import caches, folder, inspection, splits
from fdftnet_jax.data.leaks import Finding
from fdftnet_jax.data.splits import SPLITS, Example
from fdftnet_jax.errors import UserError
from fdftnet_jax.paper_sets import celeba_pggan, faceforensics, layouts

NAMES = ("pggan", *faceforensics.NAMES)


def share_images(one: str, other: str) -> bool:
    """Whether two kinds of data in one folder have images in common.

    Args:
      one: a `config.data.name`; the real images of `deepfakes` are `face2face`'s, too.
      other: another, or the same.
    """
    return one == other or {one, other} == {"deepfakes", "face2face"}


_ADVICE = folder.Advice(
    split="give the split a share in config.data.fractions",
    duplicates="remove them",
    twins="remove one of each two",
)


@dataclasses.dataclass(frozen=True)
class PaperSet:
    """Which images of the paper are used.

    Attributes:
      which: one of `NAMES`.
      compression: of the videos that the faces come from; pggan ignores it.
      limits: the images of each split at most, half of them real; 0 takes all.
    """

    which: str
    compression: str = "c23"
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """Short name for people."""
        videos = self.which in faceforensics.NAMES
        return f"{self.which}-{self.compression}" if videos else self.which

    def check(self) -> None:
        """Raises UserError for an unknown compression, or limits that are none."""
        if self.compression not in faceforensics.COMPRESSIONS:
            raise UserError(
                f"expected config.data.compression to be one of "
                f"{', '.join(faceforensics.COMPRESSIONS)}, found "
                f"{self.compression!r}; choose one of them"
            )
        if set(self.limits) - set(SPLITS) or min(self.limits.values(), default=0) < 0:
            raise UserError(
                f"expected config.data.limits of {', '.join(SPLITS)} of 0 or more, "
                f"found {dict(self.limits)}; correct them"
            )


def scan(
    directory: str,
    chosen: PaperSet,
    rules: folder.Rules,
    cache: Path,
    pictures: caches.Pictures | None = None,
) -> folder.Folder:
    """Lists a set of the paper, draws its images, inspects and judges them.

    Only the images that the limits leave are looked at. One that cannot be used is
    replaced by the next.

    Args:
      directory: laid out as `celeba_pggan` or `faceforensics` say.
      chosen: which images are used.
      rules: the fractions, and what the set may contain; its groups and generators
        are those of its layout.
      cache: where findings are remembered and reports belong.
      pictures: keeps the pictures of files that are decoded.

    Raises:
      UserError: if the folder, its lists or a value do not fit, or the findings cannot
        be written. What is wrong with the images is said by `Folder.error`.
    """
    directory = folder.resolve(directory, rules)
    chosen.check()
    layout = _layout(Path(directory), chosen, rules)
    ordered = {s: drawing_order(some) for s, some in layout.examples.items()}
    findings: dict[str, Finding] = {}
    while True:
        unusable = {path for path, f in findings.items() if f.reason}
        drawn = {
            split: draw(some, chosen.limits.get(split, 0), unusable)
            for split, some in ordered.items()
        }
        listed = [
            splits.File(example.path, split, example.label, "")
            for split, some in drawn.items()
            for example in some
        ]
        findings |= inspection.inspect(
            directory,
            listed,
            cache,
            part=chosen.title,
            pictures=pictures,
            decoding=rules.decoding,
        )
        if not any(findings[file.path].reason for file in listed):
            break
    found = folder.Folder(
        dir=directory,
        kind=chosen.which,
        prefix="paper",
        title=chosen.title,
        description=f"The paper's {chosen.title}",
        examples={split: some for split, some in drawn.items() if some},
        expected=layout.expected,
        findings=findings,
        decoding=rules.decoding,
        advice=_ADVICE,
    )
    found = _tell_few(_tell_left_out(found, layout, cache), chosen)
    return folder.judge(found, rules, cache)


def _layout(root: Path, chosen: PaperSet, rules: folder.Rules) -> layouts.Layout:
    """Reads the lists and file names of a set."""
    splits.check_fractions(rules.fractions)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise UserError(
            f"expected the folder of {chosen.which} at {str(root)!r}, found {found}; "
            "give its path with --config.data.dir=PATH"
        )
    with splits.readable(root):
        if chosen.which in faceforensics.NAMES:
            return faceforensics.read(
                root, chosen.which, chosen.compression, rules.fractions
            )
        return celeba_pggan.read(root, rules.fractions)


def _tell_left_out(
    found: folder.Folder, layout: layouts.Layout, cache: Path
) -> folder.Folder:
    header = ("path", "images", "reason")
    report = folder.make_report(found, cache, "left_out.csv", header, layout.left_out)
    if not layout.left_out:
        return found.told(report)
    reasons: dict[str, int] = collections.Counter()
    for left_out in layout.left_out:
        reasons[left_out.reason] += left_out.images
    left = sum(reasons.values())
    total = left + sum(map(len, layout.examples.values()))
    what = ", ".join(f"{number:,}: {why}" for why, number in reasons.items())
    return found.told(
        report,
        f"left out {left:,} of the {total:,} images of {found.title}, which fit no "
        f"split ({what}); they are listed in {report.path}",
    )


def _tell_few(found: folder.Folder, chosen: PaperSet) -> folder.Folder:
    there = {split: len(found.examples.get(split, [])) for split in SPLITS}
    few = [
        f"{there[split]:,} of {chosen.limits[split]:,} in {split}"
        for split in found.expected
        if there[split] < chosen.limits.get(split, 0) // 2 * 2
    ]
    if not few:
        return found
    return found.told(
        warning=f"{found.title} has fewer images than config.data.limits, half of them "
        f"real and half fake: {', '.join(few)}"
    )


def drawing_order(examples: Sequence[Example]) -> list[Example]:
    """Sorts images as they are drawn: by a hash, and evenly from their folders.

    Every folder, which is a video, gives its first image before one gives its second.
    New images in one folder leave the order of all others as it is. The hash is that
    of the names of image and folder, so that the same frames are drawn of every
    compression of a video.
    """
    hashed = sorted((_hash(example.path), example) for example in examples)
    drawn: dict[PurePosixPath, int] = collections.Counter()
    ranked = []
    for digest, example in hashed:
        folder = PurePosixPath(example.path).parent
        ranked.append((drawn[folder], digest, example))
        drawn[folder] += 1
    return [example for *_, example in sorted(ranked)]


def _hash(path: str) -> bytes:
    name = "/".join(PurePosixPath(path).parts[-2:])
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def draw(
    ordered: Sequence[Example], limit: int, without: Collection[str] = ()
) -> list[Example]:
    """Takes images of a split, as many real ones as fake ones.

    Args:
      ordered: of `drawing_order`.
      limit: the number of images, an even one, or fewer where a class has not half of
        them; 0 takes all, balanced or not.
      without: paths that are not taken.

    Returns:
      Examples, sorted by path.
    """
    classes = [
        [e for e in ordered if e.label == label and e.path not in without]
        for label in (0, 1)
    ]
    if limit:
        number = min(limit // 2, *map(len, classes))
        classes = [examples[:number] for examples in classes]
    return sorted(example for examples in classes for example in examples)
