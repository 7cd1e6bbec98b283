"""A folder of images as a data set: scanned once, judged, and told about in reports.

Every file is decoded before anything is drawn from the folder (`inspection`), so that
files which cannot be read are left out before the splits are counted, and so that leaks
are found by content (`leaks`).
"""

import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fdftnet_jax import files
from fdftnet_jax.data import caches, images, inspection, leaks, splits
from fdftnet_jax.data.leaks import Finding
from fdftnet_jax.data.splits import CLASSES, SPLITS, Example
from fdftnet_jax.errors import UserError

# A class with so many times the images of the other is worth a warning.
_UNEVEN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules for splitting a folder and for images that do not fit.

    Attributes:
      fractions: see `splits.split_of`.
      group_by: see `splits.group_of`.
      generator_by: see `splits.generator_of`.
      duplicates: 'error' for a picture in both classes or in two splits, or 'drop' to
        keep one of them (see `leaks.duplicates`).
      across_splits: whether splits may not share a picture.
      max_rejected: the largest share of the image files that may be unusable.
      decoding: one of `images.DECODINGS`.
    """

    fractions: Mapping[str, float]
    group_by: str = "file"
    generator_by: str = "folder"
    duplicates: str = "error"
    across_splits: bool = True
    max_rejected: float = 0.05
    decoding: str = "srgb"

    def check(self) -> None:
        """Raises UserError for an unknown way with duplicates."""
        if self.duplicates not in ("error", "drop"):
            raise UserError(
                "expected config.data.duplicates to be 'error' or 'drop', found "
                f"{self.duplicates!r}; choose one of them"
            )


@dataclasses.dataclass(frozen=True)
class Advice:
    """Advice to the user, which depends on the kind of folder.

    Attributes:
      split: to get a split that is not there.
      duplicates: about a picture in two splits, besides dropping one.
      twins: about pictures of different splits that look alike.
    """

    split: str = (
        "make a folder for it with real/ and fake/ in it, or give the split a fraction "
        "above 0"
    )
    duplicates: str = "remove them, group them with config.data.group_by,"
    twins: str = (
        "keep them together by a rule that gives both the same group (--group-by of "
        "adapt, config.data.group_by)"
    )


@dataclasses.dataclass(frozen=True)
class Report:
    """A CSV file about a folder, '' where there is nothing to report."""

    path: Path
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """Contents of a scanned folder of images.

    Attributes:
      dir: the folder, absolute.
      kind: the `config.data.name` of such data.
      prefix: what the names of its cache entries begin with.
      title: short name for people.
      description: of the data set, for people.
      examples: the examples of each split that has any.
      expected: the splits that were asked for.
      findings: by path, of every file that was looked at; those that cannot be used
        have a reason.
      labels: by path, of the same files: 0 real, 1 fake; empty where it is not known.
      decoding: one of `images.DECODINGS`.
      advice: what a user can do about problems.
      duplicates: pictures in both classes or in two splits.
      near_twins: pictures of different splits that look alike.
      shortcuts: how well properties of the files tell real from fake.
      reports: the files that tell of all this, beside the prepared data.
      warnings: what is wrong with a data set that can be used all the same.
      error: why it cannot be used; '' where it can. What follows was not looked for.
    """

    dir: str
    kind: str = "folder"
    prefix: str = "folder"
    title: str
    description: str
    examples: Mapping[str, Sequence[Example]]
    expected: Sequence[str]
    findings: Mapping[str, Finding]
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    decoding: str = "srgb"
    advice: Advice = Advice()
    duplicates: tuple[leaks.Duplicates, ...] = ()
    near_twins: tuple[leaks.Twins, ...] = ()
    shortcuts: tuple[leaks.Shortcut, ...] = ()
    reports: tuple[Report, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""

    @functools.cached_property
    def name(self) -> str:
        """The name of the cache entry, with a hash of all that determines records."""
        plain = re.sub(r"[^A-Za-z0-9_.]", "_", self.title)[:40]
        return f"{self.prefix}-{plain}-{self.fingerprint(SPLITS)}"

    @functools.cached_property
    def placed(self) -> list[leaks.Placed]:
        """The images of all splits with their findings."""
        return leaks.placed(self.examples, self.findings)

    @property
    def to_get_split(self) -> str:
        """Advice for a split that is missing."""
        return self.advice.split

    @property
    def rejected(self) -> dict[str, str]:
        """Path -> reason, of the files that cannot be used."""
        return {path: f.reason for path, f in self.findings.items() if f.reason}

    def png(self, split: str, index: int, pictures: caches.Pictures) -> bytes:
        """The picture of `examples[split][index]`: kept by the scan, or decoded anew.

        Raises:
          UserError: if the file is not what it was when it was scanned.
        """
        path = self.examples[split][index].path
        digest = self.findings[path].digest
        kept = pictures.get(digest)
        if kept is not None:
            return kept
        pixels = images.decode(os.path.join(self.dir, path), self.decoding)
        if leaks.digest(pixels) != digest:
            raise UserError(
                f"expected {os.path.join(self.dir, path)} to stay as it is while it is "
                "read, found another picture; start again"
            )
        return images.encode_png(pixels)

    def fingerprint(self, splits: Sequence[str]) -> str:
        """A hash of the paths, labels, groups, generators and pixels of these splits.

        It depends neither on other splits nor on where the folder is.
        """
        rows = sorted(
            (split, *example, self.findings[example.path].digest)
            for split in set(splits)
            for example in self.examples.get(split, [])
        )
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def digests(self, splits: Sequence[str]) -> dict[str, str]:
        """Path -> digest of the pixels, of these splits."""
        return {
            example.path: self.findings[example.path].digest
            for split in splits
            for example in self.examples.get(split, [])
        }

    def told(
        self, report: Report | None = None, warning: str = "", error: str = ""
    ) -> "Folder":
        """Returns the folder with one more report, warning or error."""
        return dataclasses.replace(
            self,
            reports=(*self.reports, report) if report else self.reports,
            warnings=(*self.warnings, warning) if warning else self.warnings,
            error=error,
        )


def scan(
    directory: str,
    rules: Rules,
    cache: Path,
    pictures: caches.Pictures | None = None,
) -> Folder:
    """Lists, inspects, splits and judges a folder; writes only what it remembers.

    Args:
      directory: laid out as `splits.list_files` says.
      rules: how it is split, and what it may contain.
      cache: where findings are remembered and reports belong.
      pictures: keeps the pictures of files that are decoded.

    Raises:
      UserError: if the folder or a rule does not fit, or the findings cannot be
        written. What is wrong with the images is said by `Folder.error`.
    """
    directory = resolve(directory, rules)
    listed = splits.list_files(directory)
    findings = inspection.inspect(
        directory, listed, cache, pictures=pictures, decoding=rules.decoding
    )
    examples = splits.assign(
        [file for file in listed if not findings[file.path].reason],
        group_by=rules.group_by,
        generator_by=rules.generator_by,
        fractions=rules.fractions,
        digests={path: finding.digest for path, finding in findings.items()},
    )
    if given := {file.split for file in listed if not file.is_correction} - {""}:
        expected = [split for split in SPLITS if split in given]
    else:
        expected = [s for s in SPLITS if rules.fractions.get(s, 0) > 0]
    found = Folder(
        dir=directory,
        title=files.as_utf8(os.path.basename(directory)),
        description=f"Images of {files.as_utf8(directory)}",
        examples={split: some for split, some in examples.items() if some},
        expected=expected,
        findings=findings,
        labels={file.path: file.label for file in listed},
        decoding=rules.decoding,
    )
    found = judge(found, rules, cache)
    for warning in (*_ignored(directory), *_uneven(found)):
        found = found.told(warning=warning, error=found.error)
    return found


def _ignored(directory: str) -> Iterator[str]:
    """Warns of images that are in the folder but in no class of it."""
    passed_over = splits.ignored(directory)
    if passed_over:
        shown = [
            f"{'directly in it' if path == '.' else f'{files.as_utf8(path)}/'} "
            f"({number:,})"
            for path, number in passed_over.items()
        ]
        more = [f"{len(shown) - 5} more places"] if len(shown) > 5 else []
        yield (
            f"ignored {sum(passed_over.values()):,} images of {directory} that are in "
            f"no folder of a class: {', '.join(shown[:5] + more)}; to use them, move "
            "them into real/ or fake/, in folders of their own if you like (those "
            "below fake/ name generators)"
        )


def _uneven(found: Folder) -> Iterator[str]:
    """Warns of classes of very different sizes in what a detector learns from."""
    for split in ("train", "finetune"):
        counts = Counter(CLASSES[e.label] for e in found.examples.get(split, []))
        if len(counts) == len(CLASSES) and max(counts.values()) >= _UNEVEN * min(
            counts.values()
        ):
            (usual, most), (rare, few) = counts.most_common()
            yield (
                f"the {split} split of {found.dir} has {most:,} {usual} and {few:,} "
                f"{rare} images: a detector that learns from them tends to call "
                f"pictures {usual}; add {rare} images, or count both classes the same, "
                "as `fdftnet adapt` does, and a run with --config.class_balance=weights"
            )


def resolve(directory: str, rules: Rules) -> str:
    """The absolute path of a folder; raises UserError without one, or for a rule."""
    if not directory:
        raise UserError(
            "expected the path of a folder of images, found an empty one; give it "
            "with --config.data.dir=PATH"
        )
    rules.check()
    return splits.resolve(directory)


def judge(found: Folder, rules: Rules, cache: Path) -> Folder:
    """Looks for unusable files, leaks and shortcuts, until one is an error."""
    for step in (_judge_rejected, _judge_duplicates, _judge_twins, _judge_shortcuts):
        if not found.error:
            found = step(found, rules, cache)
    return found


def _judge_rejected(found: Folder, rules: Rules, cache: Path) -> Folder:
    rejected = found.rejected
    report = make_report(
        found, cache, "rejected.csv", ("path", "reason"), rejected.items()
    )
    # Files of other kinds are listed, but nobody meant them to be images.
    other = sum(reason == inspection.NO_IMAGE for reason in rejected.values())
    number, total = len(rejected) - other, len(found.findings) - other
    warning = error = ""
    by_class = _by_class(found)
    if number > rules.max_rejected * total:
        error = (
            f"expected at most {rules.max_rejected:.0%} of the image files in "
            f"{found.dir} to be unusable, found {number} of {total}{by_class}, listed "
            f"in {report.path}; repair or remove them, or raise "
            "config.data.max_rejected"
        )
    elif number:
        warning = (
            f"left out {number} of {total} image files in {found.dir}, which cannot "
            f"be used{by_class}; the reasons are in {report.path}"
        )
    return found.told(report, warning, error)


def _by_class(found: Folder) -> str:
    """How many of the rejected files are of each class, and the usual reason."""
    reasons = {p: r for p, r in found.rejected.items() if r != inspection.NO_IMAGE}
    counts = Counter(found.labels.get(path) for path in reasons)
    shown = [f"{counts[label]} {name}" for label, name in enumerate(CLASSES)]
    [(usual, number)] = Counter(reasons.values()).most_common(1) or [("", 0)]
    text = f"{number} x {usual.partition(';')[0]}"
    return f" ({', '.join(shown)}; {text})" if found.labels and reasons else ""


def _judge_duplicates(found: Folder, rules: Rules, cache: Path) -> Folder:
    same = leaks.duplicates(found.placed, across_splits=rules.across_splits)
    if not same:
        return found
    found = dataclasses.replace(found, duplicates=tuple(same))
    drop = rules.duplicates == "drop"
    gone = {i.example.path for leak in same for i in leak.images[len(leak.kept) :]}
    if drop:
        left = {
            split: [example for example in some if example.path not in gone]
            for split, some in found.examples.items()
        }
        left = {split: some for split, some in left.items() if some}
        found = dataclasses.replace(found, examples=left)
    report = make_report(
        found,
        cache,
        "duplicates.csv",
        ("picture", "path", "split", "class", "kept"),
        (
            (
                number,
                image.example.path,
                image.split,
                CLASSES[image.example.label],
                "yes" if image.example.path in leak.kept else "no",
            )
            for number, leak in enumerate(same)
            for image in leak.images
        ),
    )
    if drop:
        warning = (
            f"left out {len(gone)} of the images of {found.dir}, whose picture is "
            f"in the other class or another split too; they are in {report.path}"
        )
        return found.told(report, warning)
    first, second = same[0].images[0], same[0].images[len(same[0].kept)]
    error = (
        "expected no picture in both classes or in two splits, found "
        f"{len(same)} in {found.dir}, such as {first.example.path} ({first.split}) and "
        f"{second.example.path} ({second.split}), all listed in {report.path}; "
        f"{found.advice.duplicates} or keep one of each with "
        "--config.data.duplicates=drop"
    )
    return found.told(report, error=error)


def _judge_twins(found: Folder, rules: Rules, cache: Path) -> Folder:
    if not rules.across_splits:
        return found
    twins = leaks.near_twins(found.placed)
    report = make_report(
        found,
        cache,
        "near_twins.csv",
        ("path", "split", "other_path", "other_split", "distance"),
        (
            (a.example.path, a.split, b.example.path, b.split, distance)
            for a, b, distance in twins
        ),
    )
    warning = ""
    if twins:
        more = " or more" if len(twins) == leaks.MOST_TWINS else ""
        warning = (
            f"images of {found.dir} that look alike are in different splits "
            f"({len(twins)}{more} by pairs, listed in {report.path}), which flatters "
            f"what is measured on the later split; {found.advice.twins}"
        )
    found = dataclasses.replace(found, near_twins=tuple(twins))
    return found.told(report, warning)


def _judge_shortcuts(found: Folder, rules: Rules, cache: Path) -> Folder:
    del rules
    shortcuts = leaks.shortcuts(found.placed)
    report = make_report(
        found,
        cache,
        "shortcuts.csv",
        ("property", "auroc", "images", "most_real", "most_fake"),
        ((s.name, f"{s.auroc:.4f}", s.images, s.real, s.fake) for s in shortcuts),
    )
    found = dataclasses.replace(found, shortcuts=tuple(shortcuts)).told(report)
    for shortcut in shortcuts:
        if shortcut.suspicious:
            found = found.told(
                warning=f"{shortcut.name} alone separates real from fake in "
                f"{found.dir}: AUROC {shortcut.auroc:.2f} (real mostly "
                f"{shortcut.real}, fake mostly {shortcut.fake}): a detector may learn "
                "this instead of the forgery; re-encode or resize the sources alike"
            )
    return found


def make_report(
    found: Folder, cache: Path, name: str, header: Sequence[str], rows: Iterable
) -> Report:
    """Makes a report that belongs beside the prepared data of a folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    empty = True
    for row in rows:
        writer.writerow([files.as_utf8(str(value)) for value in row])
        empty = False
    path = caches.entry(cache, found.name) / name
    return Report(path, "" if empty else text.getvalue())


def publish(found: Folder, cache: Path) -> None:
    """Writes the reports of a folder, and warns of what is wrong with it.

    An empty report takes away an earlier one.

    Raises:
      UserError: why the folder cannot be used, or a report cannot be written.
    """
    for report in found.reports:
        with caches.writing("a report", cache):
            if not report.text:
                report.path.unlink(missing_ok=True)
            elif not report.path.exists() or report.path.read_text() != report.text:
                report.path.parent.mkdir(parents=True, exist_ok=True)
                files.write_atomic(report.path, report.text)
    for warning in found.warnings:
        warnings.warn(warning, stacklevel=2)
    if found.error:
        raise UserError(found.error)
