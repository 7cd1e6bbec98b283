"""From pictures of a new forgery to a detector's file: what `fdftnet adapt` does.

One run: the pictures are scanned and split, a regression is fitted on the features of a
network, which is then trained by the recipe of `training.defaults` where there are
enough pictures; both together are calibrated on validation pictures, tested once beside
the detector that they started from, and exported with the record of all this. The run
lies in a workdir of the cache:

    data/new/NAME/{real,fake}    links to the folders of the new forgery
    data/new/NAME/corrections/   links to pictures that a detector got wrong
    data/old/{real,fake}/...     links to the folders of the old ones
    data/given/                  the same links, where faces are cut out for data/
    run/                         the training, a workdir like any other

The same command goes on where it stopped.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from fdftnet_jax import files
from fdftnet_jax.adaptation import faces, folders, tested
from fdftnet_jax.adaptation.tested import Scored, Tested
from fdftnet_jax.data import caches, forgery_faces, images, splits
from fdftnet_jax.data.preprocess import Preprocessing
from fdftnet_jax.detector import detector, export, file
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import calibration, results, scoring
from fdftnet_jax.models import registry
from fdftnet_jax.reporting import report as page
from fdftnet_jax.run import Run
from fdftnet_jax.training import defaults, loop
from fdftnet_jax.training.processes import say
from fdftnet_jax.verdicts import Thresholds
from fdftnet_jax.weights import published

# The new detector is worse on an old forgery than is allowed: no file was written.
EXIT_FORGOTTEN = 4
# Shares of the pictures of every forgery.
FRACTIONS = {"train": 0.7, "validation": 0.15, "test": 0.15, "finetune": 0.0}
# Groups by the name of a picture's folder, which is the same below any link; with
# faces cut out, by that of the folder of the picture or video.
_BY_FOLDER = r"([^/]+)/[^/]*$"
_BY_FOLDER_OF_SOURCE = r"([^/]+)/[^/]+/[^/]*$"
# With fewer pictures of a class to train on, a regression on frozen features finds as
# much alone as with a trained network beside it, or more (docs/results.md).
_FEW = 400
# Where no old forgery is given: weight of what the network said before of a picture.
_DISTILLATION = 1.0
# What a network is of which these fields are not told: it was made before them.
_WITHOUT = {
    "taps": False,
    "block_taps": False,
    "ftt_size": 0,
    "ftt_view": "whole",
    "ftt_filter": "",
    "regression": False,
}
# Scores the test split of a data set.
_Score = Callable[[forgery_faces.FaceDataset], Scored]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user asks for.

    Attributes:
      out: the detector's file to write.
      real: folder of real pictures; '' where there are corrections alone.
      fake: folder of pictures of the new forgery; '' likewise.
      start: a detector's file, the workdir of a run, or 'imagenet'.
      old: folders with real/ and fake/ of forgeries that must stay known.
      corrections: a CSV file or a folder (see `folders.read_corrections`); '' for none.
      group_by: what must not be split apart: 'picture', 'folder' (pictures of the same
        innermost folder), or a regex on the path below the class folder.
      faces: 'crop', 'whole' or 'auto', see `faces.crops_for`.
      workdir: folder of the run; '' is one of the cache that follows from the rest.
      max_forgetting: the largest loss of AUROC on an old forgery, in [0, 1], by the
        upper end of its 95 % interval.
      max_wrong: the largest share of wrong verdicts among the validation pictures that
        are decided, in (0, 0.5); None decides all pictures, by one threshold.
      method: 'probe' fits a regression on frozen features, 'fdftnet' trains the network
        that it starts from, too (from a detector that has no regression beside its
        network, the network alone); 'auto' is the first where it starts from ImageNet's
        weights or from a regression and has fewer than 400 pictures of a class to train
        on, else the second.
      epochs: of the training of a network, which a number given here asks for; 0 is the
        recipe's.
      seed: of everything random.
      force: whether the file is written in spite of what was forgotten.
      replace: whether an existing file may be replaced.
    """

    out: str
    real: str = ""
    fake: str = ""
    start: str = "imagenet"
    old: tuple[str, ...] = ()
    corrections: str = ""
    group_by: str = "picture"
    faces: str = "auto"
    workdir: str = ""
    max_forgetting: float = 0.02
    max_wrong: float | None = None
    method: str = "auto"
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
class _Start:
    """What a training starts from.

    Attributes:
      model: describes the network, None for weights that have a name.
      faces: the rules that faces are cut out by, None for whole pictures.
      fitted: whether it is a regression on frozen features.
    """

    model: Mapping[str, Any] | None = None
    faces: Mapping[str, Any] | None = None
    fitted: bool = False


def adapt(options: Options) -> int:
    """Makes a detector.

    Returns:
      0, or `EXIT_FORGOTTEN` where no file was written.

    Raises:
      UserError: a folder, the start or the output cannot be used.
      Interrupted: by a signal; the same call goes on.
    """
    report_path = Path(options.out).with_suffix(".report.html")
    given = (options.real, options.fake, *options.old, options.corrections)
    sources = [path for path in (*given, options.start) if path]
    for path in (options.out, report_path):
        files.check_output(path, "the output", replace=options.replace)
        files.check_no_input(path, "the output", sources)
    _check(options)
    workdir = _workdir(options)
    say(
        f"adapting {options.start} to {options.fake or options.corrections}, in "
        f"{workdir}; after a stop the same command goes on"
    )
    config = make_config(options, workdir)
    loop.train_and_evaluate(config, str(workdir / "run"))
    with Run(workdir / "run") as run:
        # A run that was finished before may have been calibrated otherwise.
        chosen = calibration.Options.of(config.to_dict())
        calibrated = calibration.for_run(run, chosen)
        before, adaptations = _begun_with(options.start)
        scored = _test(run, _test_folders(config), before, calibrated)
        records = [each.record() for each in scored.tested]
        run.write_adaptations([*adaptations, _adaptation(options, run, records)])
        written = page.write(run, scored.report, scored.scores, calibrated)
        print(tested.table(records))
        forgotten = tested.judge(scored.tested, options.max_forgetting)
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
    start = _start_from(options, config)
    by_probe = _by_probe(options, start)
    if by_probe is not None:
        # (Refused before anything is made.)
        _goes_on(options, start, by_probe)
    crops = faces.crops_for(options.faces, start.faces, _given(options))
    config.seed = options.seed
    if options.max_wrong is not None:
        config.calibration.update({"rule": "band", "max_wrong": options.max_wrong})
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
    config.data.fractions.update(FRACTIONS)
    config.data.group_by = {
        "picture": faces.BY_SOURCE if crops else "picture",
        "folder": _BY_FOLDER_OF_SOURCE if crops else _BY_FOLDER,
    }.get(options.group_by, options.group_by)
    config.data.dir, *replayed = map(str, _lay_out(options, workdir / "data", crops))
    if replayed:
        [config.data.replay_dir] = replayed
    else:
        config.data.replay = 0
    if by_probe is None:
        by_probe = _are_few(config.data.dir)
    if by_probe:
        config.update_from_flattened_dict(defaults.probe(config.model.backbone))
        config.optimizer.warmup_epochs = 0.0
    if start.model is not None and _goes_on(options, start, by_probe):
        config.init_heads = True
        known = set(config.model)
        own = {name: value for name, value in start.model.items() if name in known}
        config.model.update(_WITHOUT | own)
        if not by_probe and not config.data.replay:
            # What it knows of old forgeries shows in what it says of these pictures.
            config.distillation = _DISTILLATION
    return config.lock()


def _by_probe(options: Options, start: _Start) -> bool | None:
    """Whether a regression is fitted; None where the number of pictures decides."""
    if options.method != "auto" or options.epochs:
        return options.method == "probe"
    return None if start.model is None or start.fitted else False


def _goes_on(options: Options, start: _Start, by_probe: bool) -> bool:
    """Whether the network of the start goes on, with all its layers.

    Raises:
      UserError: it would be forgotten.
    """
    if start.model is None or start.model["kind"] not in registry.ON_BACKBONE:
        return False
    if by_probe == start.fitted:
        return True
    if not options.old:
        own, other, method = "a network", "a regression", "fdftnet"
        if start.fitted:
            own, other, method = "a regression", "a network", "probe"
        raise UserError(
            f"{options.start} is {own}, and {other} in its place would begin anew and "
            "forget the forgeries that it knows: give pictures of them with --old, or "
            f"go on with what it is by --method {method}"
        )
    return False


def _are_few(folder: str) -> bool:
    """Whether the pictures are so few that a regression is fitted to them; says so."""
    labels = [
        given.label
        for given in splits.list_files(folder)
        if given.suffix in images.SUFFIXES
    ]
    number = int(FRACTIONS["train"] * min(labels.count(label) for label in (0, 1)))
    if number >= _FEW:
        return False
    say(
        f"with about {number} pictures of a class to train on, a regression on frozen "
        f"features is fitted: below {_FEW} it finds as much alone as with a trained "
        "network beside it"
    )
    return True


def _lay_out(options: Options, data: Path, crops: faces.Crops | None) -> list[Path]:
    """Makes the run's own data set and, where there is one, that of replay.

    Args:
      options: which pictures they are of.
      data: where they go.
      crops: how faces are cut out; None takes pictures whole.

    Returns:
      Their folders.
    """
    corrections = None
    if options.corrections:
        corrections = folders.read_corrections(options.corrections)
        folders.warn_if_one_sided(corrections)
    given = data / "given" if crops and crops.rules else data
    names = []
    if options.fake:
        name = folders.called(options.fake)
        names.append(f"new/{name}")
        # With faces cut out, the first folder below fake/ would be that of a picture.
        below = f"/{name}" if crops else ""
        classes = {f"real{below}": options.real, f"fake{below}": options.fake}
        folders.lay_out(given / names[0], classes, corrections)
        corrections = None
    if options.old:
        # Without a new forgery, what is known is trained on with the corrections.
        names.append("old")
        folders.lay_out_old(given / "old", options.old, corrections)
    if crops:
        for name in names:
            crops.make(given / name, data / name)
    return [data / name for name in names]


def _given(options: Options) -> list[str]:
    """The folders of pictures."""
    paths = (options.real, options.fake, *options.old)
    return [path for path in paths if path]


def _start_from(options: Options, config: ml_collections.ConfigDict) -> _Start:
    """Finds what the training starts from; sets how pictures are seen as that did."""
    start = options.start
    config.init_from = os.path.realpath(start) if os.path.exists(start) else start
    by_name = (start, config.model.backbone) in published.FILES
    if by_name and not os.path.exists(start):
        return _Start()
    if file.is_detector(start):
        card = file.read(start).card
        model, rules, made_by = card["model"], card["faces"], card["config"]
        trained = Preprocessing.from_dict(card["preprocessing"])
    elif os.path.isdir(start):
        with Run(start) as run:
            record, made_by = run.best, run.config
        model, rules = record.model, record.lineage.latest.faces
        trained = record.preprocessing
    else:
        raise UserError(
            "expected a detector's file, the workdir of a run or imagenet to start "
            f"from, found {start!r}; give one with --from"
        )
    config.model.backbone = model["backbone"]
    config.data.scaling = trained.scaling
    config.data.decoding = trained.decoding
    config.data.size, config.data.view = trained.size, trained.view
    config.data.train_size = trained.train_size
    if trained.view == "crops":
        config.data.crop_grid = trained.grid
        config.data.crop_mirror = trained.mirror
    fitted = made_by.get("optimizer", {}).get("name") == "logistic"
    return _Start(model, rules, fitted)


def _check(options: Options) -> None:
    """Raises UserError for options that no detector can be made by."""
    if options.method == "probe" and options.epochs:
        raise UserError(
            "found --epochs with --method probe, which has none: leave it out, or give "
            "--method fdftnet"
        )
    if bool(options.real) != bool(options.fake):
        given, lacking = ("--real", "--fake")[:: 1 if options.real else -1]
        raise UserError(f"found {given} without {lacking}: give both")
    if options.real:
        folders.check(options.real, options.fake, videos=options.faces != "whole")
    elif not options.corrections:
        raise UserError(
            "expected --real and --fake, or --corrections, found neither: give the "
            "pictures to learn from"
        )
    elif not options.old:
        raise UserError(
            "expected pictures beside --corrections, which would be all that it "
            "learns from: give what it must keep knowing with --old, or a new forgery "
            "with --real and --fake"
        )
    for folder in options.old:
        folders.both(folder)


def _workdir(options: Options) -> Path:
    """The folder of the run: the same for the same work."""
    if options.workdir:
        return Path(options.workdir).absolute()
    places = [os.path.realpath(path) for path in (options.real, options.fake) if path]
    old = [os.path.realpath(path) for path in options.old]
    corrections: Any = []
    if options.corrections:
        corrections = {
            name: sorted(map(os.path.realpath, paths))
            for name, paths in folders.read_corrections(options.corrections).items()
        }
    start = options.start
    if os.path.exists(start):
        start = os.path.realpath(start)
    if file.is_detector(options.start):
        start = file.read(options.start).digest
    settings = [options.epochs, options.seed, options.group_by, options.faces]
    # (Those of before there was a choice are found again.)
    settings += [options.method] * (options.method != "auto")
    work = json.dumps([places, old, corrections, start, settings])
    digest = hashlib.sha256(work.encode()).hexdigest()[:12]
    name = f"{folders.called(options.fake or options.old[0])}-{digest}"
    return caches.cache_dir("") / "adaptations" / name


def _begun_with(start: str) -> tuple[_Score | None, list[dict[str, Any]]]:
    """What scores test pictures as it was before, and the adaptations until then."""
    if file.is_detector(start):
        known = detector.load(start)

        def by_detector(dataset: forgery_faces.FaceDataset) -> Scored:
            records = dataset.source("test")
            pictures = (
                images.decode_png(records[i]["image"]) for i in range(len(records))
            )
            margin = known.log_odds(pictures)
            logits = np.stack([np.zeros_like(margin), margin], axis=1)
            return Scored(logits, known.thresholds)

        return by_detector, known.card.get("adaptations", [])
    if not os.path.isdir(start):
        return None, []

    def by_run(dataset: forgery_faces.FaceDataset) -> Scored:
        with Run(start) as run:
            made = run.calibration
            logits = scoring.Network(run).score(dataset, "test").logits
        return Scored(logits, made.thresholds if made else Thresholds(0.0, 0.0))

    return by_run, Run(start).adaptations


@dataclasses.dataclass(frozen=True)
class _Scored:
    """The test splits, and what is shown of the first."""

    tested: list[Tested]
    report: dict[str, Any]
    scores: scoring.Scores


def _test(
    run: Run,
    test_folders: Mapping[str, bool],
    before: _Score | None,
    calibrated: calibration.Calibration | None,
) -> _Scored:
    """Scores the test splits of `_test_folders`."""
    network = scoring.Network(run)
    thresholds = calibrated.thresholds if calibrated else Thresholds(0.0, 0.0)
    found: list[Tested] = []
    shown = None
    for folder, old in test_folders.items():
        dataset = _open_test(run, folder)
        scores = network.score(dataset, "test")
        after = Scored(scores.logits, thresholds)
        of_before = before and before(dataset)
        found += _by_forgery(dataset, scores, after, of_before, old=old)
        report = results.report(scores, calibrated)
        results.write(report, scores, calibrated, run)
        shown = shown or (report, scores)
    assert shown is not None
    return _Scored(found, *shown)


def _test_folders(config: ml_collections.ConfigDict) -> dict[str, bool]:
    """The folders whose test splits are scored, and whether each is of old forgeries.

    The run's own data come first.
    """
    own, replayed = config.data.dir, config.data.replay_dir
    if not replayed:
        return {own: os.path.basename(os.path.dirname(own)) != "new"}
    return {own: False, replayed: True}


def _open_test(run: Run, folder: str) -> forgery_faces.FaceDataset:
    """The data set of a folder, whose test split is scored."""
    with warnings.catch_warnings():
        # What is wrong with the pictures was said before the training.
        warnings.simplefilter("ignore")
        return scoring.open_data(run, "test", {"dir": folder})


def _by_forgery(
    dataset: forgery_faces.FaceDataset,
    scores: scoring.Scores,
    after: Scored,
    before: Scored | None,
    *,
    old: bool,
) -> list[Tested]:
    """The test pictures: old forgeries by the folder of each, a new one as a whole."""
    paths = [record["path"] for record in scores.records]
    groups = np.array([record["group"] for record in scores.records])
    names = [path.split("/")[1] if old else scores.dataset for path in paths]
    digests = dataset.digests(("test",))
    found = []
    for name in sorted(set(names)):
        chosen = np.flatnonzero(np.array(names) == name)
        labels = scores.labels[chosen]
        pictures = [digests[paths[i]] for i in chosen]
        found.append(
            Tested(
                name,
                old,
                labels,
                groups[chosen],
                tested.fingerprint(zip(labels, pictures, strict=True)),
                Scored(after.logits[chosen], after.thresholds),
                before and Scored(before.logits[chosen], before.thresholds),
            )
        )
    return found


def _adaptation(
    options: Options, run: Run, sets: list[dict[str, Any]]
) -> dict[str, Any]:
    """The record of an adaptation (see `export`); of the day it was first made."""
    made = run.adaptations
    today = datetime.date.today().isoformat()
    start = options.start
    if file.is_detector(start):
        contents = file.read(start)
        start = f"{contents.card['name']} ({contents.digest[:12]})"
    record = run.best
    real, fake = record.lineage.latest.counts
    corrections = 0
    if options.corrections:
        found = folders.read_corrections(options.corrections)
        corrections = sum(map(len, found.values()))
    return {
        "date": made[-1]["date"] if made else today,
        "start": os.path.basename(os.path.normpath(start)),
        "real": real,
        "fake": fake,
        "corrections": corrections,
        "seed": options.seed,
        "epochs": record.progress.epoch,
        "group_by": run.config["data"]["group_by"],
        "sets": sets,
    }
