"""How the images of a training reach its steps: views, balance, batches, devices."""

import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import ml_collections
import numpy as np

from fdftnet_jax.data import corruptions, images, pipeline, preprocess
from fdftnet_jax.training import run_data, steps

BALANCES = ("none", "weights", "batches")
# Pictures of each class whose size is looked at before windows are cut from them.
_MEASURED = 200
# Classes whose median sides differ by more are told apart by the scale of a window.
_SCALE = 1.05


class Images:
    """The images of a training, as its steps and its validation take them.

    Attributes:
      train: the source of training images, as the network sees them.
      validation: that of validation images.
      class_weights: of the loss of a real and of a fake image.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        data: run_data.RunData,
        preprocessing: preprocess.Preprocessing,
    ):
        """Opens the images.

        Args:
          config: all fields of `training/defaults.py`.
          data: which images they are.
          preprocessing: between a decoded image and the network.
        """
        self._config = config
        self._data = data
        self._preprocessing = preprocessing
        self._view = random_view(config, preprocessing)
        self.train, self.validation = sources(data, config, preprocessing)
        self.class_weights = class_weights(data, config.class_balance)

    @functools.cached_property
    def validation_labels(self) -> np.ndarray | None:
        """[n] int32 where both classes count the same, None where each image does."""
        if self._config.class_balance == "none":
            return None
        return labels(self._data.validation)

    def feed(self, step: int) -> "Feed":
        """The batches from a step on, on their way to the devices.

        Args:
          step: steps done before, over all epochs.
        """
        config, source, views = self._config, self.train, None
        if fits_devices(config, self._data.num_images()):
            source, views = resident(source, config.data.threads)
        of_source = np.empty(0, np.int32)
        if config.class_balance != "none":
            of_source = labels(self._data.train)
        batches = pipeline.train_batches(
            members(source, config.class_balance, of_source),
            config.batch_size,
            config.seed,
            start_step=step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config.data.threads,
            view=self._view,
        )
        return Feed(batches, views)

    def train_batches_in_order(
        self, rows: np.ndarray, view: Callable[[np.ndarray], np.ndarray]
    ) -> Iterator[pipeline.Example]:
        """Training images once, in order, without augmentation, in one process.

        Args:
          rows: of the source of training images.
          view: what is seen of an image, such as a `Preprocessing`.
        """
        megabytes = 0  # They are read only once.
        source = _source(self._data.train, view, megabytes)
        return pipeline.eval_batches(
            pipeline.Subset(source, rows),
            self._config.batch_size,
            threads=self._config.data.threads,
        )

    def validation_batches(self) -> Iterator[pipeline.Example]:
        """This process's share of the validation images, in batches."""
        return pipeline.eval_batches(
            self.validation,
            self._config.batch_size,
            jax.process_index(),
            jax.process_count(),
            self._config.data.threads,
        )


def sources(
    data: run_data.RunData,
    config: ml_collections.ConfigDict,
    preprocessing: preprocess.Preprocessing,
) -> tuple[pipeline.Source, pipeline.Source]:
    """The training and the validation images as the network sees them.

    (Where views are drawn anew in every epoch, the training images are whole. Where the
    last checkpoint is kept whatever validation says, one window of an image has to do
    there: what is measured in the end, such as the threshold, takes all of them.)
    """
    views: list[Any] = [preprocessing, preprocessing]
    if config.keep == "last":
        views[1] = preprocessing.middle_view
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
    """The function that draws a training image's view anew in each epoch.

    None where an image always has the same one: 'resize' of a picture as it is.
    """
    drawn = corruptions_of(config)
    if drawn:
        return lambda image, rng: preprocessing.random_view(drawn(image, rng), rng)
    return preprocessing.random_view if preprocessing.view == "crops" else None


def corruptions_of(config: ml_collections.ConfigDict) -> corruptions.Drawn:
    """What a training image meets before a view of it is drawn."""
    return corruptions.Drawn(
        config.augment.jpeg, config.augment.blur, config.augment.rescale
    )


def _source(parts: list[run_data.Part], view: Any, megabytes: int) -> pipeline.Source:
    source = pipeline.ViewSource(run_data.joined(parts), view, megabytes)
    return pipeline.Subset(source, run_data.indices(parts))


def labels(parts: list[run_data.Part]) -> np.ndarray:
    """[n] int32 of all images that are used, in the order of their source."""
    return pipeline.labels(run_data.joined(parts))[run_data.indices(parts)]


def class_weights(data: run_data.RunData, balance: str) -> tuple[float, float]:
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


def fits_devices(config: ml_collections.ConfigDict, num_images: int) -> bool:
    """Whether all training views are kept on the devices.

    (One of several processes reads its own share only; what is drawn anew in each epoch
    is drawn on the host.)
    """
    size = num_images * 3 * config.data.size**2
    return (
        jax.process_count() == 1
        and config.data.view == "resize"
        and not corruptions_of(config)
        and size <= config.data.device_megabytes * 10**6
    )


def _warn_of_sizes(data: run_data.RunData) -> None:
    """Warns where the classes differ in size, which native windows show."""
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
                "forgery; take both from sources of one size, or train with "
                "--config.data.view=resize",
                stacklevel=3,
            )


class Feed:
    """Takes batches as the steps ask for them.

    Attributes:
      waited: seconds that the caller spent waiting for images, since it set it to 0.
    """

    def __init__(
        self,
        batches: Iterator[pipeline.Example],
        views: steps.Batch | None = None,
    ):
        """Wraps batches.

        Args:
          batches: as `pipeline.train_batches` yields them.
          views: from `resident`, whose source the batches were then made of.
        """
        self._batches = batches
        self._views = views
        self.waited = 0.0

    def take(self, count: int) -> tuple[np.ndarray, steps.Batch]:
        """The next `count` batches, dealt to the devices.

        Returns:
          The indices of their images, [count, b], and what the train step takes: one
          batch, or several stacked.
        """
        began = time.perf_counter()
        batches = [next(self._batches) for _ in range(count)]
        self.waited += time.perf_counter() - began
        indices = np.stack([batch["index"] for batch in batches])
        dealt = [steps.shard(batch) for batch in batches]
        batch = dealt[0]
        if count > 1:
            batch = {name: np.stack([d[name] for d in dealt], 1) for name in batch}
        return indices, batch if self._views is None else _p_pick(self._views, batch)


def resident(
    source: pipeline.Source, threads: int
) -> tuple[pipeline.Source, steps.Batch]:
    """Puts a whole source on every local device, once.

    Args:
      source: of n examples.
      threads: that read it.

    Returns:
      A source of {row, index} in its place, and the replicated {image: [n, size, size,
      3] uint8, label: [n] int32} that the rows are of.
    """
    with futures.ThreadPoolExecutor(max(1, threads)) as pool:
        examples = list(pool.map(source.__getitem__, range(len(source))))
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples], np.int32)
    views = steps.replicate({"image": images, "label": labels})
    return _Rows([example["index"] for example in examples]), views


class _Rows:
    """The examples of a source without their images and labels."""

    def __init__(self, indices: list[np.int32]):
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> pipeline.Example:
        return {"row": np.int32(i), "index": self._indices[i]}


def _pick(views: steps.Batch, batch: steps.Batch) -> steps.Batch:
    picked = {name: rows[batch["row"]] for name, rows in views.items()}
    return {**picked, "index": batch["index"]}


_p_pick = jax.pmap(_pick, axis_name=steps.AXIS)
