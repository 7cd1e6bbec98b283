"""From two folders of pictures to a detector's file: what `fdftnet adapt` does.

One run: the pictures are scanned and split, a network is trained by the recipe of
`training.defaults`, calibrated on validation pictures, tested once beside the detector
that it started from, and exported. The run lies in a workdir of the cache:

    data/NEW/{real,fake}       links to the folders of the new forgery
    data/old/{real,fake}/...   links to those of the old ones
    run/                       the training, a workdir like any other

The same command goes on where it stopped.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from fdftnet_jax import files
from fdftnet_jax.data import caches, forgery_faces, images, splits
from fdftnet_jax.data.preprocess import Preprocessing
from fdftnet_jax.detector import detector, export, file
from fdftnet_jax.errors import UserError, counted
from fdftnet_jax.evaluation import calibration, intervals, metrics, results, scoring
from fdftnet_jax.models import registry
from fdftnet_jax.reporting import report as page
from fdftnet_jax.run import Run
from fdftnet_jax.training import defaults, loop
from fdftnet_jax.training.processes import say
from fdftnet_jax.weights import published

# The new detector is worse on an old forgery than is allowed: no file was written.
EXIT_FORGOTTEN = 4
# Shares of the pictures of the new forgery.
_FRACTIONS = {"train": 0.7, "validation": 0.15, "test": 0.15, "finetune": 0.0}
# With fewer of a class, the test split has two or three.
_FEWEST = 20
# With fewer test pictures of a class, a loss of a few points cannot be seen.
_FEW_TESTED = 100
# Pictures at a time of the detector that a training started from.
_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user asks for.

    Attributes:
      real: folder of real pictures.
      fake: folder of pictures of the new forgery.
      out: the detector's file to write.
      start: a detector's file, the workdir of a run, or 'imagenet'.
      old: folders with real/ and fake/ of forgeries that must stay known.
      workdir: folder of the run; '' is one of the cache that follows from the rest.
      max_forgetting: the largest loss of AUROC on an old forgery, in [0, 1], by the
        upper end of its 95 % interval.
      epochs: of the training; 0 is the recipe's number.
      seed: of everything random.
      force: whether the file is written in spite of what was forgotten.
      replace: whether an existing file may be replaced.
    """

    real: str
    fake: str
    out: str
    start: str = "imagenet"
    old: tuple[str, ...] = ()
    workdir: str = ""
    max_forgetting: float = 0.02
    epochs: int = 0
    seed: int = 0
    force: bool = False
    replace: bool = False

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Options":
        """The options of the command line."""
        names = [field.name for field in dataclasses.fields(cls)]
        values = {name: getattr(arguments, name) for name in names}
        return cls(**{**values, "old": tuple(arguments.old)})


@dataclasses.dataclass(frozen=True)
class Tested:
    """A test split, scored before and after the adaptation.

    Attributes:
      name: of the forgery, for people.
      old: whether the adaptation was to keep it.
      labels: [n] int, real 0 and fake 1.
      groups: [n] str.
      after: [n, 2] logits of the new detector.
      before: [n, 2], None where there was no detector before.
    """

    name: str
    old: bool
    labels: np.ndarray
    groups: np.ndarray
    after: np.ndarray
    before: np.ndarray | None

    @functools.cached_property
    def change(self) -> dict[str, Any] | None:
        """The AUROC after minus that before, see `intervals.paired_bootstrap`."""
        if self.before is None:
            return None
        return intervals.paired_bootstrap(
            self.labels, self.after, self.before, self.groups
        )

    @property
    def smaller_class(self) -> int:
        """The number of pictures of the class that has fewer."""
        return int(np.bincount(self.labels, minlength=2).min())


def adapt(options: Options) -> int:
    """Makes a detector.

    Returns:
      0, or `EXIT_FORGOTTEN` where no file was written.

    Raises:
      UserError: a folder, the start or the output cannot be used.
      Interrupted: by a signal; the same call goes on.
    """
    report_path = Path(options.out).with_suffix(".report.html")
    sources = (options.real, options.fake, *options.old)
    for path in (options.out, report_path):
        files.check_output(path, "the output", replace=options.replace)
        files.check_no_input(path, "the output", [*sources, options.start])
    _check_folders(options)
    workdir = _workdir(options)
    config = make_config(options, workdir)
    say(
        f"adapting {options.start} to {options.fake}, in {workdir}; after a stop the "
        "same command goes on"
    )
    loop.train_and_evaluate(config, str(workdir / "run"))
    with Run(workdir / "run") as run:
        calibrated = calibration.for_run(run)
        network = scoring.Network(run)
        before = _detector_before(options.start)
        dataset = _open_tests(run)
        scores = network.score(dataset, "test")
        tested = [_tested(scores, before and before(dataset))]
        found = results.report(scores, calibrated)
        results.write(found, scores, calibrated, run)
        if options.old:
            dataset = _open_tests(run, config.data.replay_dir)
            of_old = network.score(dataset, "test")
            tested += _by_folder(of_old, before and before(dataset))
            results.write(results.report(of_old, calibrated), of_old, calibrated, run)
        written = page.write(run, found, scores, calibrated)
        print(table(tested))
        forgotten = judge(tested, options.max_forgetting)
        if forgotten and not options.force:
            say(
                f"{'; '.join(forgotten)}: no file was written; give more pictures of "
                "it with --old, allow more with --max-forgetting, or write the file "
                "all the same with --force"
            )
            return EXIT_FORGOTTEN
        export.write(
            run, options.out, name=Path(options.out).stem, replace=options.replace
        )
        files.write_atomic(report_path, written.read_bytes())
    print(
        f"{options.out}  what it is: fdftnet show {options.out}\n"
        f"{report_path}  how it was tested"
    )
    return 0


def make_config(options: Options, workdir: Path) -> ml_collections.ConfigDict:
    """The config of the training, whose folders are linked into the workdir.

    Raises:
      UserError: the start or the workdir cannot be used.
    """
    config = defaults.get_config()
    config.model.backbone = "efficientnet_lite0"
    config.update_from_flattened_dict(defaults.FROM_IMAGENET)
    _start_from(options.start, config)
    config.seed = options.seed
    # The loss counts real and fake pictures the same, however many there are of each.
    config.class_balance = "weights"
    config.epochs = options.epochs or config.epochs
    config.optimizer.warmup_epochs = min(
        config.optimizer.warmup_epochs, config.epochs / 4
    )
    config.data.update({"name": "folder", "train_split": "train"})
    # A picture in both classes or in two splits is left out, and said.
    config.data.duplicates = "drop"
    config.data.max_rejected = 0.5
    config.data.fractions.update(_FRACTIONS)
    new = workdir / "data" / _called(options.fake)
    _link(new / "real", options.real)
    _link(new / "fake", options.fake)
    config.data.dir = str(new)
    if not options.old:
        config.data.replay = 0
        return config.lock()
    old = workdir / "data" / "old"
    for number, folder in enumerate(options.old):
        for name, path in _class_folders(folder).items():
            _link(old / name / f"{number + 1}-{_called(folder)}", str(path))
    config.data.replay_dir = str(old)
    return config.lock()


def _start_from(start: str, config: ml_collections.ConfigDict) -> None:
    """Sets what a training from this start needs."""
    config.init_from = os.path.realpath(start) if os.path.exists(start) else start
    by_name = (start, config.model.backbone) in published.FILES
    if by_name and not os.path.exists(start):
        return
    model: Mapping[str, Any]
    if file.is_detector(start):
        card = file.read(start).card
        model, faces = card["model"], card["faces"]
        trained = Preprocessing.from_dict(card["preprocessing"])
    elif os.path.isdir(start):
        with Run(start) as run:
            record = run.best
        model, faces = record.model, record.lineage.latest.faces
        trained = record.preprocessing
    else:
        raise UserError(
            "expected a detector's file, the workdir of a run or imagenet to start "
            f"from, found {start!r}; give one with --from"
        )
    if faces is not None:
        raise UserError(
            f"{start} works on faces that were cut out by experiments.prepare_faces, "
            "which this command does not do: cut out those of the new pictures so, and "
            "give `python -m experiments.finetune --config.init_from="
            f"{start}`"
        )
    config.model.backbone = model["backbone"]
    config.data.scaling = trained.scaling
    config.data.decoding = trained.decoding
    config.data.size, config.data.view = trained.size, trained.view
    if trained.view == "crops":
        config.data.crop_grid = trained.grid
        config.data.crop_mirror = trained.mirror
    if model["kind"] in registry.ON_BACKBONE:
        # The same network goes on, with all its layers.
        config.init_heads = True
        known = set(config.model)
        config.model.update({k: v for k, v in model.items() if k in known})


def _check_folders(options: Options) -> None:
    """Raises UserError for folders that no detector can be made of."""
    for flag, path in (("--real", options.real), ("--fake", options.fake)):
        if not os.path.isdir(path):
            raise UserError(f"expected a folder of pictures at {flag}, found no {path}")
        names = splits.walk(Path(path))
        number = sum(Path(name).suffix.lower() in images.SUFFIXES for name in names)
        if number < _FEWEST:
            raise UserError(
                f"{path} has {counted(number, 'picture')}: expected {_FEWEST} or more, "
                "to train on some and test on others; add pictures"
            )
    if os.path.realpath(options.real) == os.path.realpath(options.fake):
        raise UserError(
            f"--real and --fake are the same folder, {options.real}: give the real "
            "pictures and the forged ones apart"
        )
    for folder in options.old:
        _class_folders(folder)


def _class_folders(folder: str) -> dict[str, Path]:
    found = splits.class_folders(folder)
    if set(found) != set(splits.CLASSES):
        raise UserError(
            f"expected --old {folder} to hold real/ and fake/, found "
            f"{', '.join(found) or 'neither'}; give the folder that holds both"
        )
    return found


def _workdir(options: Options) -> Path:
    """The folder of the run: the same for the same work."""
    if options.workdir:
        return Path(options.workdir).absolute()
    places = [os.path.realpath(path) for path in (options.real, options.fake)]
    old = [os.path.realpath(path) for path in options.old]
    start = options.start
    if os.path.exists(start):
        start = os.path.realpath(start)
    if file.is_detector(options.start):
        start = file.read(options.start).digest
    work = json.dumps([places, old, start, options.epochs, options.seed])
    digest = hashlib.sha256(work.encode()).hexdigest()[:12]
    name = f"{_called(options.fake)}-{digest}"
    return caches.cache_dir("") / "adaptations" / name


def _called(folder: str) -> str:
    """A short name of a folder: its own, or of what it lies in if it is named fake."""
    path = Path(os.path.realpath(folder))
    is_class = path.name.lower() in ("real", "fake", "0_real", "1_fake")
    return files.printable((path.parent if is_class else path).name) or "new"


def _link(path: Path, target: str) -> None:
    """Makes a link; raises UserError where another one or a file is there."""
    target = os.path.realpath(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        path.symlink_to(target, target_is_directory=True)
    elif os.path.realpath(path) != target:
        raise UserError(
            f"{path} is there and leads elsewhere than to {target}: this workdir is of "
            "another adaptation; give another --workdir"
        )


def _detector_before(
    start: str,
) -> Callable[[forgery_faces.FaceDataset], np.ndarray] | None:
    """What scores the test split of a data set as it was before: [n, 2] logits."""
    if file.is_detector(start):
        known = detector.load(start)

        def by_detector(dataset: forgery_faces.FaceDataset) -> np.ndarray:
            records = dataset.source("test")
            margins = []
            for first in range(0, len(records), _CHUNK):
                chunk = range(first, min(first + _CHUNK, len(records)))
                pictures = [images.decode_png(records[i]["image"]) for i in chunk]
                margins.append(
                    known.logits(np.stack([known.preprocessing(p) for p in pictures]))
                )
            margin = np.concatenate(margins)
            return np.stack([np.zeros_like(margin), margin], axis=1)

        return by_detector
    if not os.path.isdir(start):
        return None

    def by_run(dataset: forgery_faces.FaceDataset) -> np.ndarray:
        with Run(start) as run:
            return scoring.Network(run).score(dataset, "test").logits

    return by_run


def _open_tests(run: Run, folder: str = "") -> forgery_faces.FaceDataset:
    """The run's own data set or that of a folder, whose test split is scored."""
    with warnings.catch_warnings():
        # What is wrong with the pictures was said before the training.
        warnings.simplefilter("ignore")
        return scoring.open_data(run, "test", {"dir": folder} if folder else None)


def _tested(scores: scoring.Scores, before: np.ndarray | None) -> Tested:
    groups = np.array([record["group"] for record in scores.records])
    name = os.path.basename(scores.directory)
    return Tested(name, False, scores.labels, groups, scores.logits, before)


def _by_folder(scores: scoring.Scores, before: np.ndarray | None) -> list[Tested]:
    """The old forgeries, by the folder of each in that of all."""
    of = np.array([record["path"].split("/")[1] for record in scores.records])
    groups = np.array([record["group"] for record in scores.records])
    found = []
    for name in sorted(set(of)):
        chosen = of == name
        found.append(
            Tested(
                name.partition("-")[2],
                True,
                scores.labels[chosen],
                groups[chosen],
                scores.logits[chosen],
                None if before is None else before[chosen],
            )
        )
    return found


def table(tested: Sequence[Tested]) -> str:
    """AUROC on every test split before and after, for a terminal."""
    width = max(12, *(len(each.name) for each in tested))
    lines = [
        f"{'test pictures':{width}}  {'real':>5} {'fake':>5}  AUROC before   after   "
        "change (95 % interval)"
    ]
    for each in tested:
        real, fake = np.bincount(each.labels, minlength=2)
        after = metrics.binary_metrics(each.labels, each.after)["auc"]
        shown = "           -" + f"   {after:.3f}"
        if change := each.change:
            low, high = change["interval"]
            shown = (
                f"{change['b']:12.3f}   {after:.3f}   {change['difference']:+.3f} "
                f"({low:+.3f} to {high:+.3f})"
            )
        kind = "old" if each.old else "new"
        lines.append(f"{each.name:{width}}  {real:5} {fake:5}  {shown}   {kind}")
    return "\n".join(lines)


def judge(tested: Sequence[Tested], max_forgetting: float) -> list[str]:
    """Which old forgeries were forgotten, a sentence each; says where none can tell.

    Args:
      tested: the test splits.
      max_forgetting: the largest loss of AUROC, in [0, 1], by the upper end of its
        95 % interval.
    """
    forgotten = []
    for each in tested:
        change = each.change if each.old else None
        if change is None:
            continue
        if each.smaller_class < _FEW_TESTED:
            say(
                f"{each.name}: {each.smaller_class} test pictures of a class cannot "
                f"tell whether more than {max_forgetting:g} of AUROC was lost"
            )
            continue
        low, _ = change["interval"]
        if -low > max_forgetting:
            forgotten.append(
                f"{each.name} may have lost {-low:.3f} of AUROC, more than "
                f"{max_forgetting:g}"
            )
    return forgotten
