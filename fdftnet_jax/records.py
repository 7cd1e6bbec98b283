"""What is written down of a run: what its weights have seen, and how they are judged.

Each record is a frozen dataclass; `to_dict` and `from_dict` stand at the edge of the
files, which hold JSON.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import numpy.typing as npt
from scipy import special

from fdftnet_jax.data import splits
from fdftnet_jax.data.forgery_faces import FaceDataset
from fdftnet_jax.data.preprocess import Preprocessing
from fdftnet_jax.paper_sets import sets
from fdftnet_jax.verdicts import Thresholds
from fdftnet_jax.weights.pretrained import WeightsInfo

CALIBRATION_VERSION = 1


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """A data set that weights were trained on.

    Attributes:
      data: the section `data` of the config of that training.
      fingerprint: of all that the training saw: its training split and validation.
      directory: the folder, absolute; '' for the toy.
      counts: real and fake images that were trained on.
      faces: the rules that the faces were cut out by (`choice.recorded_rules`), None
        where nobody knows.
    """

    data: Mapping[str, Any]
    fingerprint: str
    directory: str
    counts: tuple[int, int] = (0, 0)
    faces: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The `config.data.name`, such as 'folder'."""
        return self.data["name"]

    @property
    def splits(self) -> tuple[str, str]:
        """The split that was trained on, and validation."""
        return self.data["train_split"], "validation"

    def same_data(self, dataset: FaceDataset) -> bool:
        """Whether this is that data set: the same images, or the same folder."""
        same_folder = bool(dataset.directory) and (
            (dataset.directory, dataset.kind) == (self.directory, self.kind)
        )
        return same_folder or dataset.fingerprint(self.splits) == self.fingerprint

    def overlaps(self, dataset: FaceDataset) -> bool:
        """Whether a data set has images in common with this one."""
        return self.same_data(dataset) or (
            bool(dataset.directory)
            and self.shares_images(dataset.directory, dataset.kind)
        )

    def shares_images(self, directory: str, kind: str) -> bool:
        """Whether data of a kind in a folder have images in common with these."""
        return directory == self.directory and sets.share_images(kind, self.kind)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainedOn":
        """Rebuilds what `to_dict` gave."""
        return cls(
            # Trainings before this field existed read the numbers of the file.
            data={"decoding": "stored", **values["data"]},
            fingerprint=values["dataset"],
            directory=values["directory"],
            counts=tuple(values["counts"]),
            faces=values["faces"],
        )

    @classmethod
    def of_card(
        cls,
        described: Mapping[str, Any],
        data: Mapping[str, Any],
        faces: Mapping[str, Any] | None,
    ) -> "TrainedOn":
        """Reads a data set from a detector's card, which keeps its folder's name alone.

        Args:
          described: of the card's `trained_on`.
          data: the section `data` of the card's config, for what that leaves open.
          faces: of the card.
        """
        kind, _, family = described["name"].partition("-")
        own = {
            "name": kind,
            "train_split": described["split"],
            "shots": described["shots"],
            "dir": described["folder"],
        }
        own |= {"family": family} if family else {}
        return cls(
            data={**data, **own},
            fingerprint=described["fingerprint"],
            directory=described["folder"],
            counts=(described["real"], described["fake"]),
            faces=faces,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for JSON."""
        return {
            "data": dict(self.data),
            "dataset": self.fingerprint,
            "directory": self.directory,
            "counts": list(self.counts),
            "faces": None if self.faces is None else dict(self.faces),
        }


@dataclasses.dataclass(frozen=True)
class Lineage:
    """Every data set that weights were trained on, the latest first."""

    data_sets: tuple[TrainedOn, ...] = ()

    def __iter__(self) -> Iterator[TrainedOn]:
        return iter(self.data_sets)

    @property
    def latest(self) -> TrainedOn:
        """The data set of the latest training."""
        return self.data_sets[0]

    @property
    def before(self) -> "Lineage":
        """The data sets of the trainings before the latest."""
        return Lineage(self.data_sets[1:])

    def after(self, data_sets: Sequence[TrainedOn]) -> "Lineage":
        """The lineage of weights that are trained on more data sets now."""
        return Lineage((*data_sets, *self.data_sets))

    def data_config(self, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
        """The section `data` of the latest training, with fields replaced.

        A folder that was trained on is split as it was then: another split would test
        on images that were trained on. The rules on the paths of one folder need not
        fit another, which gets the default ones. Where the changes name a folder alone,
        the kind of data is that of the training on it, or 'folder'.

        Args:
          changes: fields that take the place of the training's.
        """
        directory = self.latest.directory
        if "dir" in changes:
            directory = splits.resolve(changes["dir"])
        for run in self:
            if run.shares_images(directory, changes.get("name", run.kind)):
                return _replaced(run.data, changes)
        rules = {"name": "folder", "group_by": "file", "generator_by": "folder"}
        return _replaced({**self.latest.data, **rules}, changes)


def _replaced(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Fields replaced, those of a sub-section one by one."""
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(name), dict)
        merged[name] = {**old[name], **value} if both else value
    return ml_collections.ConfigDict(merged)


@dataclasses.dataclass
class Progress:
    """Where a training stands, beside its arrays.

    Attributes:
      epoch: epochs done.
      best_epoch: the epoch with the lowest validation loss so far; 0 is none.
      best_loss: that loss, in nats.
      finished: whether the training ended by itself.
      steps: done in the epoch after these, where a signal stopped the training.
      sums: of the metrics over those steps (see `steps.Metrics`).
    """

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    finished: bool = False
    steps: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CheckpointRecord:
    """What a checkpoint says of its network and of how it came about.

    Attributes:
      model: what `registry.build` makes the network from, with its `dtype`.
      preprocessing: between a decoded image and the network.
      lineage: every data set that the weights have seen.
      weights: the file that the backbone comes from, None where it was trained anew.
      replay: fingerprint of the data of replay, '' for none.
      fake_share: share of fakes that the training was shown, in (0, 1).
      trained_parameters: how many the training changes in its last epoch.
      progress: of the training.
      digest: of the network's arrays; '' before they are saved.
    """

    model: Mapping[str, Any]
    preprocessing: Preprocessing
    lineage: Lineage
    weights: WeightsInfo | None
    replay: str
    fake_share: float
    trained_parameters: int
    progress: Progress = dataclasses.field(default_factory=Progress)
    digest: str = ""

    @classmethod
    def from_dict(cls, meta: Mapping[str, Any]) -> "CheckpointRecord":
        """Rebuilds what `to_dict` gave, with the digests that a checkpoint adds."""
        weights = meta["weights"]
        if weights is not None:
            weights = WeightsInfo.from_dict(weights)
        return cls(
            model=meta["model"],
            preprocessing=Preprocessing.from_dict(meta["preprocessing"]),
            lineage=Lineage(tuple(map(TrainedOn.from_dict, meta["trained_on"]))),
            weights=weights,
            replay=meta["replay"],
            fake_share=meta["fake_share"],
            trained_parameters=meta["trained_parameters"],
            progress=Progress(**meta["progress"]),
            digest=meta["digests"]["variables"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for JSON."""
        return {
            "model": dict(self.model),
            "preprocessing": self.preprocessing.to_dict(),
            "labels": splits.CLASSES,
            "trained_on": [run.to_dict() for run in self.lineage],
            "weights": None
            if self.weights is None
            else dataclasses.asdict(self.weights),
            "replay": self.replay,
            "fake_share": self.fake_share,
            "trained_parameters": self.trained_parameters,
            "progress": dataclasses.asdict(self.progress),
        }


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How scores become probabilities and verdicts (`evaluation.calibration`).

    Attributes:
      rule: of the threshold: 'eer', the false positive rate being nearest to the false
        negative rate, 'fpr', the most fakes called so within a false positive rate, or
        'band', two thresholds between which a picture is undecided.
      fpr: of the rule 'fpr', in [0, 1].
      prior: share of fakes among the pictures to be scored, in (0, 1).
      training_prior: share of fakes among the images of the training.
      temperature: divides the logit.
      shift: is added to it then.
      threshold_logit: the lowest logit that is called fake.
      threshold_probability: P(fake) of that logit.
      num_real: real images of validation.
      num_fake: fake ones.
      validation: metrics on validation.
      notes: what a reader should know.
      checkpoint_step: of the checkpoint that was calibrated.
      checkpoint_digest: of its arrays.
      fingerprint: of the validation split.
      max_wrong: of the rule 'band', the largest share of wrong verdicts among the
        pictures that are decided, in (0, 0.5).
      lower_logit: of the rule 'band', the lowest logit that is not called real; None of
        the other rules, by which a logit below `threshold_logit` is called real.
      lower_probability: P(fake) of that logit.
    """

    rule: str
    fpr: float
    prior: float
    training_prior: float
    temperature: float
    shift: float
    threshold_logit: float
    threshold_probability: float
    num_real: int
    num_fake: int
    validation: dict[str, float]
    notes: list[str]
    checkpoint_step: int = 0
    checkpoint_digest: str = ""
    fingerprint: str = ""
    max_wrong: float = 0.02
    lower_logit: float | None = None
    lower_probability: float | None = None

    @property
    def num_images(self) -> int:
        """Images of validation."""
        return self.num_real + self.num_fake

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds on logits, which are one unless the rule is 'band'."""
        upper, lower = self.threshold_logit, self.lower_logit
        return Thresholds(upper if lower is None else lower, upper)

    def described_thresholds(self) -> dict[str, Any]:
        """The thresholds as logits and probabilities, ready for JSON.

        Returns:
          `logit` and `probability` from which a picture is called fake, what that is a
          `probability_of`, and by the rule 'band' `lower_logit` and
          `lower_probability`, below which it is called real.
        """
        described = {
            "logit": self.threshold_logit,
            "probability": self.threshold_probability,
            "probability_of": "calibrated",
        }
        if self.lower_logit is not None:
            described |= {
                "lower_logit": self.lower_logit,
                "lower_probability": self.lower_probability,
            }
        return described

    @property
    def rule_in_words(self) -> str:
        """How the threshold was chosen."""
        if self.rule == "eer":
            return "equal error rates on validation"
        if self.rule == "band":
            return f"at most {self.max_wrong:.3g} of the verdicts on validation wrong"
        return f"at most {self.fpr:.3g} of validation's real images"

    def probability(self, logit: npt.ArrayLike) -> np.ndarray:
        """P(fake), calibrated, of the logits of scores."""
        return special.expit(np.asarray(logit) / self.temperature + self.shift)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for JSON."""
        return {"schema_version": CALIBRATION_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration | None":
        """What `to_dict` gave; None for anything else, such as another version's."""
        # Files from before the rule 'band' lack its fields.
        band = {"max_wrong": 0.02, "lower_logit": None, "lower_probability": None}
        values = {**band, **values}
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != {"schema_version", *names}:
            return None
        if values["schema_version"] != CALIBRATION_VERSION:
            return None
        return cls(**{name: values[name] for name in names})


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The main results of an evaluation, as its file states them.

    Attributes:
      file: name of the file.
      dataset: short name of the data.
      split: that was scored.
      own: whether the run was trained on these data.
      step: of the checkpoint.
      num_real: real images.
      num_fake: fake ones.
      auc: {value, interval} of the AUROC.
      level: of the interval, in (0, 1).
    """

    file: str
    dataset: str
    split: str
    own: bool
    step: int
    num_real: int
    num_fake: int
    auc: Mapping[str, Any]
    level: float

    @classmethod
    def from_dict(cls, file: str, report: Mapping[str, Any]) -> "Evaluation":
        """Reads a report of `results.report`; KeyError where it is none."""
        stem = f"{report['dataset']}-{report['split']}"
        return cls(
            file=file,
            dataset=report["dataset"],
            split=report["split"],
            # Of other data than the run's own, the name has a hash.
            own=file == f"{stem}.json",
            step=report["checkpoint_step"],
            num_real=report["num_real"],
            num_fake=report["num_fake"],
            auc=report["figures"]["auc"],
            level=report["bootstrap"]["level"],
        )
