"""The images that a run trains on and chooses its checkpoint by."""

import dataclasses
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from fdftnet_jax import datasets
from fdftnet_jax.data import (
    corruptions,
    forgery_faces,
    images,
    past_runs,
    pipeline,
    preprocess,
    splits,
)
from fdftnet_jax.errors import UserError, counted
from fdftnet_jax.training.processes import say

BALANCES = ("none", "weights", "batches")
# Pictures of each class whose size is looked at before windows are cut from them.
_MEASURED = 200
# Splits of a folder of replay that no earlier run has split.
_REPLAY_FRACTIONS = {"train": 0.6, "validation": 0.1, "test": 0.3, "finetune": 0.0}
# Classes whose median sides differ by more are told apart by the scale of a window.
_SCALE = 1.05


@dataclasses.dataclass(frozen=True)
class Part:
    """A split of one data set, and the images of it that are used.

    Attributes:
      dataset: that it is of.
      split: its name.
      records: of the split.
      indices: [n] of the records that are used, sorted.
      counts: real and fake ones among them.
    """

    dataset: forgery_faces.FaceDataset
    split: str
    records: forgery_faces.Records
    indices: np.ndarray
    counts: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a run reads.

    Attributes:
      dataset: the run's own.
      fingerprint: of all that training sees of it: the test split may come and go.
      replay: the same of the data of replay, '' for none.
      train: own images first, then those of replay.
      validation: the same.
      replayed: what a checkpoint tells of the data set of replay, [] where the weights
        have seen it before, or where there is none.
    """

    dataset: forgery_faces.FaceDataset
    fingerprint: str
    replay: str
    train: list[Part]
    validation: list[Part]
    replayed: list[dict[str, Any]]

    def described(self, config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
        """What a checkpoint tells of the run's own data set, and of a new replay's.

        Args:
          config: the section `data` of the run's config.
        """
        own = {
            "data": config.to_dict(),
            "dataset": self.fingerprint,
            "directory": self.dataset.directory,
        }
        parts = self.train[: 1 + len(self.replayed)]
        return [
            {
                **told,
                "counts": list(part.counts),
                "faces": past_runs.face_rules(told["directory"]),
            }
            for told, part in zip([own, *self.replayed], parts, strict=True)
        ]

    def number(self) -> int:
        """Of the images that are trained on."""
        return sum(len(part.indices) for part in self.train)

    def fake_share(self, balance: str) -> float:
        """Share of fakes, in (0, 1), that a balance shows to the training."""
        if balance != "none":
            return 0.5
        real, fake = (sum(part.counts[k] for part in self.train) for k in (0, 1))
        return fake / (real + fake)

    def paths(self, indices: Sequence[int]) -> list[str]:
        """The files of training images, by their `index`."""
        records = _joined(self.train)
        ends = np.cumsum([len(part.records) for part in self.train])
        parts = np.searchsorted(ends, indices, side="right")
        return [
            str(Path(self.train[part].dataset.directory) / records[i]["path"])
            for part, i in zip(parts, indices, strict=True)
        ]


def prepare(
    config: ml_collections.ConfigDict, trained_on: list[dict[str, Any]]
) -> RunData:
    """Prepares the data of a run.

    Args:
      config: all fields of `configs/base.py`.
      trained_on: what the weights that the run starts from have seen, the latest first.

    Raises:
      UserError: the data do not fit, or those of replay are gone.
    """
    split = config.data.train_split
    dataset = datasets.prepare(config.data, needed=(split, "validation"))
    fingerprint = dataset.fingerprint((split, "validation"))
    train = [_drawn(dataset, split, config.data.shots, config.seed)]
    validation = [_drawn(dataset, "validation", 0, config.seed)]
    replay, replayed = "", []
    others = [run for run in trained_on if not _same(config, dataset, run)]
    if config.data.replay and not (config.data.replay_dir or others):
        say(
            "no replay: init_from names no other data set that its weights have seen; "
            "--config.data.replay_dir=PATH gives an old forgery's folder"
        )
    elif config.data.replay:
        known = trained_on if config.data.replay_dir else others
        try:
            old, described = _old(config, known, dataset.directory)
        except UserError as error:
            raise UserError(
                f"no replay of an old forgery: {error}; --config.data.replay=0 trains "
                "without"
            ) from error
        seen = described["data"]["train_split"]
        train.append(_drawn(old, seen, config.data.replay, config.seed))
        validation.append(_drawn(old, "validation", config.data.replay, config.seed))
        _check_apart(train, config.data.duplicates == "drop")
        replay = described["dataset"]
        if replay not in [run["dataset"] for run in trained_on]:
            replayed.append(described)
    return RunData(dataset, fingerprint, replay, train, validation, replayed)


def _same(
    config: ml_collections.ConfigDict,
    dataset: forgery_faces.FaceDataset,
    run: dict[str, Any],
) -> bool:
    """Whether an earlier run was trained on this data set, by its images or folder."""
    seen = (run["data"]["train_split"], "validation")
    of_run = (run["directory"], run["data"]["name"])
    same_folder = dataset.directory and of_run == (dataset.directory, config.data.name)
    return bool(same_folder) or dataset.fingerprint(seen) == run["dataset"]


def _old(
    config: ml_collections.ConfigDict,
    trained_on: list[dict[str, Any]],
    directory: str,
) -> tuple[forgery_faces.FaceDataset, dict[str, Any]]:
    """The data set of replay, and what a checkpoint tells of it."""
    # Where it is prepared is this machine's matter.
    changes: dict[str, Any] = {"cache_dir": config.data.cache_dir}
    if config.data.replay_dir:
        changes["dir"] = config.data.replay_dir
        own = {"data": config.data.to_dict(), "directory": directory}
        known = [*trained_on, own]
        asked = splits.resolve(config.data.replay_dir)
        if asked not in [run["directory"] for run in known]:
            changes |= {"fractions": _REPLAY_FRACTIONS, "train_split": "train"}
        # The weights may have seen the run's own folder, split as it is now.
        trained_on = known
    data = past_runs.data_config(trained_on, changes)
    needed = (data.train_split, "validation")
    dataset = datasets.prepare(data, needed=needed, only_needed=True)
    return dataset, {
        "data": data.to_dict(),
        "dataset": dataset.fingerprint(needed),
        "directory": dataset.directory,
    }


def _check_apart(train: list[Part], drop: bool) -> None:
    """Trains on no picture that is in validation or test of the other data set.

    Raises:
      UserError: there is such a picture, and it is not to be dropped.
    """
    own, old = train
    for k, (part, other) in enumerate(((own, old), (old, own))):
        not_trained = other.dataset.digests(("validation", "test"))
        held_out = {digest: path for path, digest in not_trained.items()}
        trained = part.dataset.digests((part.split,))
        shared = {path: held_out[d] for path, d in trained.items() if d in held_out}
        if not shared:
            continue
        here, there = (Path(p.dataset.directory) for p in (part, other))
        first, second = next(iter(shared.items()))
        told = (
            f"{counted(len(shared), 'picture')} of {here} ({part.split}) "
            f"also in validation or test of {there}, such as {here / first} and "
            f"{there / second}"
        )
        if not drop:
            raise UserError(
                f"{told}: figures on them would be too good; remove them from one of "
                "the folders, or --config.data.duplicates=drop does not train on them"
            )
        seen = "; the weights that the run starts from have seen them" * (part is old)
        warnings.warn(f"not trained on: {told}{seen}", stacklevel=3)
        kept = [i for i in part.indices if part.records[int(i)]["path"] not in shared]
        indices = np.array(kept, np.int64)
        labels = pipeline.labels(part.records)[indices]
        counts = (int(np.sum(labels == 0)), int(np.sum(labels == 1)))
        train[k] = dataclasses.replace(part, indices=indices, counts=counts)


def _drawn(
    dataset: forgery_faces.FaceDataset, split: str, shots: int, seed: int
) -> Part:
    records, found = dataset.source(split), dataset.counts(split)
    indices = np.arange(len(records))
    if shots:
        indices, found = pipeline.draw_shots(pipeline.labels(records), shots, seed)
        if min(found) < shots and split != "validation":
            say(
                f"fewer than {shots} shots per class in the split {split!r} of "
                f"{dataset.name}: taking {found[0]} real and {found[1]} fake"
            )
    return Part(dataset, split, records, indices, found)


def describe(data: RunData) -> str:
    """The number of images of each part, for people."""
    parts = [f"{len(p.indices):,} images of {p.dataset.name}" for p in data.train]
    return " and, as replay, ".join(parts)


def sources(
    data: RunData,
    config: ml_collections.ConfigDict,
    preprocessing: preprocess.Preprocessing,
) -> tuple[pipeline.Source, pipeline.Source]:
    """The training and the validation images as the network sees them.

    (Where views are drawn anew in every epoch, the training images are whole.)
    """
    views: list[Any] = [preprocessing, preprocessing]
    if random_view(config, preprocessing) is not None:
        views[0] = pipeline.native
    if preprocessing.view == "crops":
        _warn_of_sizes(data)
    train, validation = (
        _source(parts, view, config.data.memory_megabytes)
        for parts, view in zip((data.train, data.validation), views, strict=True)
    )
    return train, validation


def random_view(
    config: ml_collections.ConfigDict, preprocessing: preprocess.Preprocessing
) -> Callable[[np.ndarray, np.random.Generator], np.ndarray] | None:
    """What draws a training image's view anew in each epoch (`train_batches`).

    None where an image always has the same one: 'resize', without JPEG and blur.
    """
    drawn = _corruptions(config)
    if drawn:
        return lambda image, rng: preprocessing.random_view(drawn(image, rng), rng)
    return preprocessing.random_view if preprocessing.view == "crops" else None


def _corruptions(config: ml_collections.ConfigDict) -> corruptions.Drawn:
    return corruptions.Drawn(config.augment.jpeg, config.augment.blur)


def _source(parts: list[Part], view: Any, megabytes: int) -> pipeline.Source:
    source = pipeline.ViewSource(_joined(parts), view, megabytes)
    return pipeline.Subset(source, _indices(parts))


def _joined(parts: list[Part]) -> pipeline.Joined:
    return pipeline.Joined([part.records for part in parts])


def _indices(parts: list[Part]) -> np.ndarray:
    """Of the joined records."""
    starts = np.cumsum([0, *(len(part.records) for part in parts)])
    pairs = zip(starts[:-1], parts, strict=True)
    return np.concatenate([start + part.indices for start, part in pairs])


def labels(parts: list[Part]) -> np.ndarray:
    """[n] int32 of all images that are used, in the order of their source."""
    return pipeline.labels(_joined(parts))[_indices(parts)]


def class_weights(data: RunData, balance: str) -> tuple[float, float]:
    """Weights of the loss that count both classes the same; (1, 1) for no 'weights'."""
    if balance != "weights":
        return 1.0, 1.0
    fake = data.fake_share("none")
    return 0.5 / (1 - fake), 0.5 / fake


def members(
    source: pipeline.Source, balance: str, labels: np.ndarray
) -> list[tuple[pipeline.Source, float]]:
    """The mixture that batches are drawn from: for 'batches', as much of each class."""
    if balance != "batches":
        return [(source, 1.0)]
    return [
        (pipeline.Subset(source, np.flatnonzero(labels == label)), 0.5)
        for label in (0, 1)
    ]


def fits_devices(config: ml_collections.ConfigDict, number: int) -> bool:
    """Whether all training views are kept on the devices.

    (One of several processes reads its own share only; what is drawn anew in each epoch
    is drawn on the host.)
    """
    size = number * 3 * config.data.size**2
    return (
        jax.process_count() == 1
        and config.data.view == "resize"
        and not _corruptions(config)
        and size <= config.data.device_megabytes * 10**6
    )


def _warn_of_sizes(data: RunData) -> None:
    """Windows at native resolution show the scale of a picture, and so its size."""
    for part in data.train:
        sides: dict[int, list[int]] = {0: [], 1: []}
        for i in part.indices:
            record = part.records[int(i)]
            found = sides[record["label"]]
            if len(found) < _MEASURED:
                found.append(min(images.png_size(record["image"])))
            if all(len(found) == _MEASURED for found in sides.values()):
                break
        real, fake = (statistics.median(found) for found in sides.values())
        if max(real, fake) > _SCALE * min(real, fake):
            warnings.warn(
                f"real and fake images of {part.dataset.name} differ in size (shorter "
                f"side {real:g} and {fake:g} pixels in the median): windows at native "
                "resolution show that, and a detector may learn it instead of the "
                "forgery; --config.data.view=resize does not",
                stacklevel=3,
            )
