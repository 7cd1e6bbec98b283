"""The images of a report: the most wrong ones, and what is attended to in some."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image
from scipy import special

from fdftnet_jax.data import images, preprocess, splits
from fdftnet_jax.evaluation import scoring, split_metrics
from fdftnet_jax.models import explanation, fdftnet, registry
from fdftnet_jax.records import Calibration, CheckpointRecord
from fdftnet_jax.reporting import page, wording
from fdftnet_jax.verdicts import FAKE, REAL, UNDECIDED, Thresholds

NUM_WRONG = 40
# Of each class, right and wrong.
_NUM_ATTENDED = 2
# Side of a picture in the page, at most, in pixels.
_SIDE = 128
# Perceptually uniform, and readable in grey.
_COLOURS = "viridis"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A scored split, and how its images are judged.

    Attributes:
      scores: the split.
      rows: its images.
      calibration: of the detector, if any.
      thresholds: on logits.
      temperature: of the calibration, 1 without one.
    """

    scores: scoring.Scores
    rows: split_metrics.Rows
    calibration: Calibration | None
    thresholds: Thresholds
    temperature: float

    @property
    def margins(self) -> np.ndarray:
        """How far an image lies on the wrong side of the threshold, [n] log odds.

        Calibrated; below 0 for an image that is called what it is, or undecided.
        """
        too_low = self.thresholds.lower - self.rows.ranking
        too_high = self.rows.ranking - self.thresholds.upper
        return np.where(self.rows.labels == 1, too_low, too_high) / self.temperature

    @property
    def verdicts(self) -> np.ndarray:
        """What each image is called, [n] str."""
        return self.thresholds.verdicts(self.rows.ranking)

    @property
    def wrong(self) -> np.ndarray:
        """Whether each image is called what it is not, [n] bool."""
        return self.verdicts == np.where(self.rows.labels == 1, REAL, FAKE)

    def decode(self, index: int) -> np.ndarray:
        """An image at its native size, [h, w, 3] uint8."""
        records = self.scores.encoded
        assert records is not None
        return images.decode_png(records[index]["image"])

    def tile(self, index: int, pictures: Sequence[page.Picture]) -> page.Tile:
        """Pictures of an image with its label, verdict, score and path."""
        label = splits.CLASSES[self.rows.labels[index]]
        verdict = str(self.verdicts[index])
        logit = self.rows.ranking[index]
        lines = [f"score {_percent(special.expit(logit))}"]
        if self.calibration:
            probability = float(self.calibration.probability(logit))
            lines.append(f"P(fake) {_percent(probability)}")
        if generator := self.rows.generators[index]:
            lines.append(f"generator {generator}")
        record = self.scores.records[index]
        mark = "right" if label == verdict else "wrong"
        title = f"{label}, called {verdict}: {mark}"
        if verdict == UNDECIDED:
            title = f"{label}, {verdict}"
        return page.Tile(pictures, title, lines, record["path"])


def most_wrong(
    shown: Shown, preprocessing: preprocess.Preprocessing
) -> list[page.Part]:
    """The images that lie furthest on the wrong side of the threshold.

    Args:
      shown: the split; without its images there is nothing.
      preprocessing: of the checkpoint.
    """
    if shown.scores.encoded is None:
        return []
    margins = shown.margins
    order = np.argsort(-margins, kind="stable")[:NUM_WRONG].tolist()
    total = int(shown.wrong.sum())
    as_seen = preprocessing.view == "resize" and preprocessing.size <= _SIDE
    tiles = []
    for index in order:
        label = splits.CLASSES[shown.rows.labels[index]]
        image = shown.decode(index)
        source = _source(preprocessing(image) if as_seen else image)
        picture = page.Picture(source, f"{label} image number {index + 1}")
        tiles.append(shown.tile(index, [picture]))
    caption = (
        f"{total:,} of {margins.size:,} images are called what they are not. Here are "
        f"the {len(order)} that lie furthest on the wrong side of the threshold, the "
        "worst first, by their calibrated log odds"
    )
    if total < len(order):
        caption += (
            f"; after the {total} wrong ones, those that are not wrong by the least "
            "margin"
        )
    how = (
        "They are shown as the network sees them."
        if as_seen
        else f"They are reduced to at most {_SIDE} pixels."
    )
    return [page.Images(f"{caption}. {how}", tiles)]


def attention(
    shown: Shown, record: CheckpointRecord, variables: Mapping[str, Any]
) -> list[page.Part]:
    """Maps of what each stage of the Fine-Tune Transformer attends to, in a few images.

    Args:
      shown: the split.
      record: of the checkpoint.
      variables: its arrays.

    Returns:
      Nothing for a network without such stages, or without the images.
    """
    model = registry.build(record.model)
    found = explanation.gammas(variables)
    if (
        not (isinstance(model, fdftnet.FDFtNet) and found)
        or shown.scores.encoded is None
    ):
        return []
    preprocessing = record.preprocessing
    chosen = _examples(shown)
    views = np.stack([_view(shown.decode(index), preprocessing) for index in chosen])
    scaled = preprocess.scale(views, preprocessing.scaling)
    maps = [
        np.asarray(stage)
        for stage in explanation.attention_maps(model, variables, scaled)
    ]
    rows = [
        (f"{number}", f"{stage.shape[1]} x {stage.shape[2]}", f"{gamma:+.4f}")
        for number, (stage, gamma) in enumerate(zip(maps, found, strict=True), 1)
    ]
    tiles = []
    for place, index in enumerate(chosen):
        label = splits.CLASSES[shown.rows.labels[index]]
        pictures = [page.Picture(_source(views[place]), f"{label} image", "image")]
        for number, stage in enumerate(maps, 1):
            weights = stage[place]
            peak = weights.max() * weights.size
            y, x = np.unravel_index(weights.argmax(), weights.shape)
            pictures.append(
                page.Picture(
                    page.png(_coloured(weights)),
                    f"attention of stage {number}: most at row {y + 1} of "
                    f"{weights.shape[0]}, column {x + 1} of {weights.shape[1]}",
                    f"stage {number} ({peak:.1f} x)",
                )
            )
        tiles.append(shown.tile(index, pictures))
    term = page.Term("gamma", wording.WORDS["gamma"])
    return [
        page.Table("Stages.", ("stage", "positions", term), rows),
        page.Images(
            "How much each position is attended to, the mean over all queries, from "
            "nothing (dark) to the most in this map (bright); '3 x' is at most three "
            "times as much as if all were attended to alike. A map says where the "
            "network looks and not why; with a gamma near 0 it hardly counts. Shown "
            "are images that are called right and wrong with the largest margins.",
            tiles,
        ),
    ]


def _examples(shown: Shown) -> list[int]:
    """Chooses the clearest right and wrong images of each class."""
    decided = shown.verdicts != UNDECIDED
    chosen: list[int] = []
    for label in (0, 1):
        for kind in (decided & ~shown.wrong, shown.wrong):
            (indices,) = np.nonzero(kind & (shown.rows.labels == label))
            order = np.argsort(-np.abs(shown.margins[indices]), kind="stable")
            chosen += indices[order[:_NUM_ATTENDED]].tolist()
    return chosen


def _view(image: np.ndarray, preprocessing: preprocess.Preprocessing) -> np.ndarray:
    """The network's view, [size, size, 3]; of several windows the middle one."""
    view = dataclasses.replace(preprocessing, grid=1, mirror=False)(image)
    return view if view.ndim == 3 else view[0]


def _source(image: np.ndarray) -> str:
    """An image as it is where that is small, else reduced, as a data URI."""
    if max(image.shape[:2]) <= _SIDE:
        return page.png(image)
    small = Image.fromarray(image)
    small.thumbnail((_SIDE, _SIDE))
    return page.jpeg(np.asarray(small))


def _coloured(weights: np.ndarray) -> np.ndarray:
    """A map as colours, from 0 to its maximum: [h, w, 3] uint8."""
    return mpl.colormaps[_COLOURS](weights / weights.max(), bytes=True)[..., :3]


def _percent(probability: float) -> str:
    """A probability in percent, with the digits that tell it from 0 and 1."""
    percent = 100 * probability
    nearest = min(percent, 100 - percent)
    decimals = 1 if nearest >= 0.1 else 4
    return f"{percent:.{decimals}f} %"
