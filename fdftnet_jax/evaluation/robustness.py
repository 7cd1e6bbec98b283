"""Metrics of a detector after ordinary image processing.

Every picture of a split is processed at its own size, before the network's view of it,
by each operation and strength of `corruptions.OPERATIONS`, and scored.
"""

import dataclasses
from typing import Any

import numpy as np
from tqdm import tqdm

from fdftnet_jax.data import corruptions, forgery_faces, pipeline
from fdftnet_jax.evaluation import scoring, split_metrics

# By operation and strength, the logits [n, 2] of a split in its order.
Conditions = dict[str, dict[float, np.ndarray]]

FIGURES = ("auc", "tpr_at_threshold", "fpr_at_threshold")


@dataclasses.dataclass(frozen=True)
class Processed:
    """Whole pictures, processed and then seen as the network sees them.

    Attributes:
      whole: their source.
      network: whose view of them is taken.
      operation: that they meet.
      strength: of it.
    """

    whole: pipeline.Source
    network: scoring.Network
    operation: corruptions.Operation
    strength: float

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, i: int) -> pipeline.Example:
        example = self.whole[i]
        image = self.operation.apply(example["image"], self.strength, i)
        return {**example, "image": self.network.preprocessing(image)}


def score(
    network: scoring.Network,
    dataset: forgery_faces.FaceDataset,
    split: str,
    *,
    cache_megabytes: int = 1024,
) -> Conditions:
    """Scores a split under every condition.

    Args:
      network: compiled once for all of them.
      dataset: prepared data.
      split: of it.
      cache_megabytes: decoded pictures are kept in memory up to this size; others are
        decoded for each condition.

    Raises:
      UserError: a picture is too large for JPEG.
    """
    whole = pipeline.ViewSource(dataset.source(split), pipeline.native, cache_megabytes)
    conditions = [
        (name, strength)
        for name, operation in corruptions.OPERATIONS.items()
        for strength in operation.strengths
    ]
    found: Conditions = {name: {} for name, _ in conditions}
    number = len(conditions) * len(whole)
    # Shown on a terminal only.
    with tqdm(desc="robustness", total=number, unit=" images", disable=None) as bar:
        for name, strength in conditions:
            processed = Processed(
                whole, network, corruptions.OPERATIONS[name], strength
            )
            found[name][strength] = network.logits(processed, bar.update)
    return found


def report(
    scores: scoring.Scores,
    conditions: Conditions,
    threshold: float,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The metrics of a split under every condition, ready for JSON.

    Args:
      scores: of the split as it is.
      conditions: of `score`.
      threshold: on logits.
      resamples: for the intervals; they are the same ones under every condition.
      seed: of the resamples.

    Returns:
      The part `robustness` of a report (see `results`).

    Raises:
      UserError: a logit is not finite.
    """

    def of(logits: np.ndarray) -> dict[str, Any]:
        rows = split_metrics.Rows.of(dataclasses.replace(scores, logits=logits))
        computed, _ = split_metrics.compute(
            rows, threshold, {}, resamples=resamples, seed=seed, only=FIGURES
        )
        return computed

    operations = {}
    for name, by_strength in conditions.items():
        operation = corruptions.OPERATIONS[name]
        operations[name] = {
            "title": operation.title,
            "unit": operation.unit,
            "strengths": [
                {"strength": strength, "figures": of(logits)}
                for strength, logits in by_strength.items()
            ],
        }
    return {"clean": of(scores.logits), "operations": operations}
