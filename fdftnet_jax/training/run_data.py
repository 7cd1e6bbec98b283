"""The images that a run trains on and chooses its checkpoint by."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from fdftnet_jax import datasets
from fdftnet_jax.data import (
    forgery_faces,
    pipeline,
    splits,
)
from fdftnet_jax.errors import UserError, counted
from fdftnet_jax.faces import choice
from fdftnet_jax.records import Lineage, TrainedOn
from fdftnet_jax.training.processes import say

# Splits of a folder of replay that no earlier run has split.
_REPLAY_FRACTIONS = {"train": 0.6, "validation": 0.1, "test": 0.3, "finetune": 0.0}
# Times that a correction is shown in an epoch, at most, and the share of the other
# pictures that all corrections together make then, at most: ten of them matter among a
# thousand, and cannot outweigh these.
_REPEATS, _CORRECTED = 10, 0.1


@dataclasses.dataclass(frozen=True)
class Part:
    """A split of one data set, and the images of it that are used.

    Attributes:
      dataset: that it is of.
      split: its name.
      records: of the split.
      indices: [n] of the records that are used, sorted; of a correction several times.
      counts: real and fake pictures among them.
    """

    dataset: forgery_faces.FaceDataset
    split: str
    records: forgery_faces.Records
    indices: np.ndarray
    counts: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class RunData:
    """The images of a run, and the records of their data sets.

    Attributes:
      train: own images first, then those of replay.
      validation: the same.
      own: what a checkpoint says of the run's own data set.
      replayed: the same of the data set of replay, None without one.
      replay_is_new: whether the weights that the run starts from have not seen that.
    """

    train: list[Part]
    validation: list[Part]
    own: TrainedOn
    replayed: TrainedOn | None = None
    replay_is_new: bool = False

    @property
    def replay(self) -> str:
        """The fingerprint of the data of replay, '' for none."""
        return self.replayed.fingerprint if self.replayed else ""

    def lineage(self, before: Lineage) -> Lineage:
        """Every data set that the trained weights have seen, the run's own first.

        Args:
          before: of the weights that the run starts from.
        """
        new = [self.replayed] if self.replayed and self.replay_is_new else []
        return before.after([self.own, *new])

    def num_images(self) -> int:
        """The number of images of an epoch."""
        return sum(len(part.indices) for part in self.train)

    def fake_share(self, balance: str) -> float:
        """Share of fakes, in (0, 1), that a balance shows to the training."""
        if balance != "none":
            return 0.5
        labels = pipeline.labels(joined(self.train))[indices(self.train)]
        return float(np.mean(labels))

    def paths(self, indices: Sequence[int]) -> list[str]:
        """The files of training images, by their `index`."""
        records = joined(self.train)
        ends = np.cumsum([len(part.records) for part in self.train])
        parts = np.searchsorted(ends, indices, side="right")
        return [
            str(Path(self.train[part].dataset.directory) / records[i]["path"])
            for part, i in zip(parts, indices, strict=True)
        ]


def prepare(config: ml_collections.ConfigDict, before: Lineage) -> RunData:
    """Prepares the data of a run.

    Args:
      config: all fields of `training/defaults.py`.
      before: what the weights that the run starts from have seen.

    Raises:
      UserError: the data do not fit, or those of replay are gone.
    """
    split = config.data.train_split
    dataset = datasets.prepare(config.data, needed=(split, "validation"))
    own = _record(config.data, dataset)
    left_out = splits.held_out(config.data.held_out)
    _check_held_out(dataset, split, left_out)
    train = [_drawn(dataset, split, config.data.shots, config.seed, left_out)]
    validation = [_drawn(dataset, "validation", 0, config.seed, left_out)]
    old = _replay(config, before, dataset, own)
    if old is None:
        return RunData(train, validation, _counted(own, train[0]))
    replayed_set, replayed = old
    shots = config.data.replay
    train.append(_drawn(replayed_set, replayed.splits[0], shots, config.seed))
    validation.append(_drawn(replayed_set, "validation", shots, config.seed))
    _check_apart(train, config.data.duplicates == "drop")
    return RunData(
        train,
        validation,
        _counted(own, train[0]),
        _counted(replayed, train[1]),
        replayed.fingerprint not in [run.fingerprint for run in before],
    )


def _record(
    data: ml_collections.ConfigDict, dataset: forgery_faces.FaceDataset
) -> TrainedOn:
    splits_read = (data.train_split, "validation")
    fingerprint = dataset.fingerprint(splits_read)
    return TrainedOn(data.to_dict(), fingerprint, dataset.directory)


def _counted(record: TrainedOn, part: Part) -> TrainedOn:
    """The record with what is known once the images are drawn."""
    faces = choice.recorded_rules(record.directory)
    return dataclasses.replace(record, counts=part.counts, faces=faces)


def _replay(
    config: ml_collections.ConfigDict,
    before: Lineage,
    dataset: forgery_faces.FaceDataset,
    own: TrainedOn,
) -> tuple[forgery_faces.FaceDataset, TrainedOn] | None:
    """The data set of replay and its record, None where there is none.

    It is that of `replay_dir`, or the latest other one that the weights have seen.

    Raises:
      UserError: it cannot be used.
    """
    data = config.data
    if not data.replay:
        return None
    others = Lineage(tuple(run for run in before if not run.same_data(dataset)))
    if not (data.replay_dir or others.data_sets):
        say(
            "no replay: init_from names no other data set that its weights have seen; "
            "--config.data.replay_dir=PATH gives an old forgery's folder"
        )
        return None
    # Where it is prepared is this machine's matter; and both are read alike.
    changes: dict[str, Any] = {"cache_dir": data.cache_dir, "decoding": data.decoding}
    known = others
    if data.replay_dir:
        # The weights may have seen the run's own folder, split as it is now.
        known = Lineage((*before, own))
        changes["dir"] = data.replay_dir
        asked = splits.resolve(data.replay_dir)
        if asked not in [run.directory for run in known]:
            changes |= {"fractions": _REPLAY_FRACTIONS, "train_split": "train"}
            # A picture has its split wherever it lies.
            if data.group_by == "picture":
                changes |= {"fractions": data.fractions, "group_by": "picture"}
    try:
        old_data = known.data_config(changes)
        needed = (old_data.train_split, "validation")
        old = datasets.prepare(old_data, needed=needed, only_needed=True)
    except UserError as error:
        raise UserError(
            f"no replay of an old forgery: {error}; --config.data.replay=0 trains "
            "without"
        ) from error
    return old, _record(old_data, old)


def _check_apart(train: list[Part], drop: bool) -> None:
    """Drops training pictures that the other data set holds out.

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
                f"{told}: metrics on them would be too good; remove them from one of "
                "the folders, or --config.data.duplicates=drop does not train on them"
            )
        seen = "; the weights that the run starts from have seen them" * (part is old)
        warnings.warn(f"not trained on: {told}{seen}", stacklevel=3)
        kept = [i for i in part.indices if part.records[int(i)]["path"] not in shared]
        indices = np.array(kept, np.int64)
        counts = _counts(pipeline.labels(part.records)[np.unique(indices)])
        train[k] = dataclasses.replace(part, indices=indices, counts=counts)


def _check_held_out(
    dataset: forgery_faces.FaceDataset, split: str, left_out: Sequence[str]
) -> None:
    """Raises UserError where a generator is not there, or no other is."""
    if not left_out:
        return
    made = {record["generator"] for record in dataset.source(split) if record["label"]}
    if not set(left_out) < made:
        missing = sorted(set(left_out) - made)
        why = f"there is no {missing[0]!r}" if missing else "no other is left"
        raise UserError(
            f"data.held_out is {','.join(left_out)!r}, but {why} among the generators "
            f"of {dataset.name}, split {split!r}: {', '.join(sorted(made)) or 'none'}"
        )


def _drawn(
    dataset: forgery_faces.FaceDataset,
    split: str,
    shots: int,
    seed: int,
    left_out: Sequence[str] = (),
) -> Part:
    records = dataset.source(split)
    labels = pipeline.labels(records)
    corrections = np.zeros(len(records), bool)
    if any(map(splits.is_correction, dataset.digests((split,)))):
        corrections = np.array([splits.is_correction(r["path"]) for r in records])
    kept = ~corrections
    if left_out:
        kept &= [record["generator"] not in left_out for record in records]
    indices = np.flatnonzero(kept)
    found = _counts(labels[indices])
    if shots:
        drawn, found = pipeline.draw_shots(labels[indices], shots, seed)
        indices = indices[drawn]
        if min(found) < shots and split != "validation":
            say(
                f"fewer than {shots} shots per class in the split {split!r} of "
                f"{dataset.name}: taking {found[0]} real and {found[1]} fake"
            )
    if number := int(corrections.sum()):
        times = int(_CORRECTED * len(indices) / number)
        times = min(max(times, 1), _REPEATS)
        say(
            f"{counted(number, 'correction')} in {dataset.name}, each shown "
            f"{counted(times, 'time')} in an epoch"
        )
        shown = np.repeat(np.flatnonzero(corrections), times)
        indices = np.sort(np.concatenate([indices, shown]))
        found = _counts(labels[np.unique(indices)])
    return Part(dataset, split, records, indices, found)


def _counts(labels: np.ndarray) -> tuple[int, int]:
    """The number of real and of fake ones."""
    return int(np.sum(labels == 0)), int(np.sum(labels == 1))


def describe(data: RunData) -> str:
    """The number of images of each part, for people."""
    parts = [f"{len(p.indices):,} images of {p.dataset.name}" for p in data.train]
    return " and, as replay, ".join(parts)


def joined(parts: list[Part]) -> pipeline.Joined:
    """The records of all parts, one after the other."""
    return pipeline.Joined([part.records for part in parts])


def indices(parts: list[Part]) -> np.ndarray:
    """The places, [n], in the joined records of the images that are used."""
    starts = np.cumsum([0, *(len(part.records) for part in parts)])
    pairs = zip(starts[:-1], parts, strict=True)
    return np.concatenate([start + part.indices for start, part in pairs])
