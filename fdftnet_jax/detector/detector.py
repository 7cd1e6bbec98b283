"""Reads a detector from its file and scores pictures with it.

>>> import fdftnet_jax
>>> import numpy as np
>>> detector = fdftnet_jax.load("toy")
>>> detector.card["toy"], detector.card["labels"]
(True, ['real', 'fake'])

Scores are P(fake) of pictures [b, h, w, 3] uint8, of several arrays of any size, or of
image files, `detector.score(["a.jpg", "b.png"])`:

>>> pictures = np.zeros((2, 48, 64, 3), np.uint8)
>>> scores = detector.score(pictures)
>>> scores.shape, bool(((0 <= scores) & (scores <= 1)).all())
((2,), True)

Verdicts and calibrated probabilities are of log odds, which `logits` gives for views at
the size of the network:

>>> z = detector.logits(np.stack([detector.preprocessing(p) for p in pictures]))
>>> verdicts = detector.thresholds.verdicts(z)
>>> set(verdicts) <= {"real", "fake", "undecided"}, detector.probability(z).shape
(True, (2,))
"""

import itertools
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.export
import numpy as np
from scipy import special

from fdftnet_jax import parallel
from fdftnet_jax.data import images as image_files
from fdftnet_jax.data import splits
from fdftnet_jax.data.preprocess import Preprocessing
from fdftnet_jax.detector import file, network
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.verdicts import Thresholds

# How far logits may lie from those that the file states, in themselves and as a share:
# CPUs differ in the order of sums alone, others multiply float32 in fewer bits too
# (docs/performance.md has what was measured, up to 0.002 and 0.015 on a GPU).
_TOLERANCE = {"float32": 0.02, "bfloat16": 0.1}
_TOLERANCE_ON_CPU = {"float32": 0.002, "bfloat16": 0.1}
# Of the file's arrays: the program, beside the weights.
STABLEHLO = "stablehlo"
# What a program of `export` calls: it compares shapes, and only when it is compiled.
_HARMLESS_CALLS = ("shape_assertion",)
_LARGEST_SIDE = 4096
_LARGEST_GRID = 64
# A path, or a picture.
Image = str | os.PathLike[str] | np.ndarray


def load(
    path: str | os.PathLike[str],
    *,
    program: bool = False,
    import_backbone: bool = False,
) -> "Detector":
    """Reads a detector that `fdftnet export` has written; runs no code from it.

    Args:
      path: of the file, or 'toy' for the one that the package carries.
      program: whether to run the program in the file, StableHLO, instead of building
        the network by the package's code: for a backbone MODULE:ATTRIBUTE, or a version
        of the package that builds another network. Only for files that you trust: the
        digest is no signature, and JAX's reader of programs is not made for forged
        ones, which can end the process. Where the program cannot be used here, the
        network is built after all, with a warning.
      import_backbone: whether to build a network on a backbone MODULE:ATTRIBUTE, which
        imports the module that the file names: for files that you trust.

    Raises:
      UserError: there is no such file, it is no detector, or damaged; or its network is
        on a backbone MODULE:ATTRIBUTE, and neither option is given.
    """
    contents = file.read(path)
    try:
        return Detector(
            path, contents, program=program, import_backbone=import_backbone
        )
    # By its digest the file is as it was written, so whoever wrote it made it so.
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise file.tampered(path, error) from error


class Detector:
    """Scores pictures as the run did that it was exported from.

    Attributes:
      card: what the file says (see `export.card`).
      preprocessing: from a picture to the network's views.
      threshold: the lowest log odds that are called fake.
      thresholds: that one, and the lower one below which log odds are called real; they
        are the same unless the detector was calibrated by the rule 'band'.
      variables: `params` and `batch_stats` of the network.
      digest: SHA-256 of the file, as it says itself (see `file`).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        contents: file.Contents,
        *,
        program: bool = False,
        import_backbone: bool = False,
    ):
        """Takes the contents of the file; see `load`."""
        arrays, card = dict(contents.arrays), contents.card
        self._path = os.fspath(path)
        self._import_backbone = import_backbone
        self.card = card
        self.digest = contents.digest
        if card["labels"] != list(splits.CLASSES):
            raise ValueError(f"the classes are {card['labels']}")
        self.preprocessing = Preprocessing.from_dict(card["preprocessing"])
        if (
            self.preprocessing.size > _LARGEST_SIDE
            or self.preprocessing.grid > _LARGEST_GRID
        ):
            raise ValueError("views of such a size or number")
        self.threshold = _number(card["threshold"]["logit"])
        lower = _number(card["threshold"].get("lower_logit", self.threshold))
        if lower > self.threshold:
            raise ValueError("the lower threshold is above the upper one")
        self.thresholds = Thresholds(lower, self.threshold)
        self._calibration = card["calibration"]
        if self._calibration is not None:
            _number(self._calibration["shift"])
            if _number(self._calibration["temperature"]) <= 0:
                raise ValueError("the temperature is not above 0")
        self._expected = np.array(card["check"], np.float64)
        if self._expected.shape != (2, 2) or not np.isfinite(self._expected).all():
            raise ValueError("the logits of its check are no numbers")
        self._version = str(card["versions"]["fdftnet_jax"])
        on_cpu = jax.default_backend() == "cpu"
        tolerance = _TOLERANCE_ON_CPU if on_cpu else _TOLERANCE
        self._tolerance = tolerance[card["model"]["dtype"]]
        stablehlo = arrays.pop(STABLEHLO)
        if any(a.dtype not in (np.float16, np.float32) for a in arrays.values()):
            raise ValueError("weights that are not floating-point numbers")
        self._arrays = {
            name: array.astype(np.float32) for name, array in sorted(arrays.items())
        }
        self.variables = network.nested(self._arrays)
        self._on_device: Any = None
        self._compiled: dict[int, Any] = {}
        self._program = self._exported(stablehlo) if program else None
        if self._program is None:
            self.model()

    def logits(self, views: np.ndarray) -> np.ndarray:
        """Computes the log odds of views, logit(fake) - logit(real).

        A batch is filled up to a power of two, of which each number (on a CPU that of
        a part) is compiled once, and has to give the logits that the file states for
        two computed pictures.

        Args:
          views: [b, size, size, 3] uint8, or [b, v, size, size, 3] of v views of each
            picture, whose logits are averaged.

        Returns:
          [b] float64.

        Raises:
          UserError: the views have another shape or type, the network is not the one
            that was exported, or a score is not finite.
        """
        views = np.asarray(views)
        size = self.preprocessing.size
        if (
            views.dtype != np.uint8
            or views.ndim not in (4, 5)
            or views.shape[-3:] != (size, size, 3)
        ):
            raise UserError(
                f"expected views [b, {size}, {size}, 3] uint8, found "
                f"{list(views.shape)} {views.dtype}; make them with "
                "detector.preprocessing(image)"
            )
        rows = views.reshape(-1, size, size, 3)
        if not len(rows):
            return np.zeros(len(views))
        padded = np.zeros((_power_of_two(len(rows)), size, size, 3), np.uint8)
        padded[: len(rows)] = rows
        logits = self._run(padded)[: len(rows)]
        # As in evaluation, the mean is of float32.
        logits = logits.reshape(len(views), -1, 2).mean(1)
        log_odds = logits[:, 1].astype(np.float64) - logits[:, 0]
        if not np.isfinite(log_odds).all():
            raise UserError(
                f"{self._path} gives a score that is not finite: its network has "
                "diverged; train it again"
            )
        return log_odds

    def probability(self, z: np.ndarray) -> np.ndarray | None:
        """Computes calibrated P(fake) of log odds; None without a calibration.

        Args:
          z: log odds of `logits`.
        """
        if self._calibration is None:
            return None
        temperature, shift = (self._calibration[k] for k in ("temperature", "shift"))
        return special.expit(np.asarray(z) / temperature + shift)

    def score(
        self, images: Image | Iterable[Image], batch_size: int = 64
    ) -> np.ndarray:
        """Scores pictures of any size: P(fake), raw.

        Takes the same and raises the same as `log_odds`.

        Returns:
          [b] float64, raw P(fake) in [0, 1], as the column `score` of an evaluation.
        """
        return special.expit(self.log_odds(images, batch_size))

    def log_odds(
        self, images: Image | Iterable[Image], batch_size: int = 64
    ) -> np.ndarray:
        """Computes the log odds of pictures of any size.

        Args:
          images: [b, h, w, 3] uint8 RGB; or several such [h, w, 3] and paths of image
            files, in any mixture; or one path.
          batch_size: views at a time, at least 1.

        Returns:
          [b] float64; from `threshold` on, a picture is called fake.

        Raises:
          UserError: an array is no picture; its subclass `ImageError`: a file is none.
        """
        if isinstance(images, str | os.PathLike):
            images = [images]
        count = max(1, batch_size // self.preprocessing.number)
        logits = [np.zeros(0)]
        for chunk in _chunks(images, count):
            views = np.stack([self.view(image) for image in chunk])
            # Another number of views would be compiled anew.
            whole = len(views) if len(logits) == 1 else count
            rows = np.resize(np.arange(len(views)), whole)
            logits.append(self.logits(views[rows])[: len(views)])
        return np.concatenate(logits)

    def model(self) -> nn.Module:
        """Builds the Flax network `(images, *, train) -> logits [b, 2]`.

        Raises:
          UserError: the code of its backbone cannot be, or may not be, imported, or the
            weights do not fit it.
        """
        model = self.card["model"]
        if ":" in model["backbone"] and not self._import_backbone:
            raise UserError(
                f"the network in {self._path} is on {model['backbone']}, whose code is "
                "not part of the package: where you trust the file, run the program in "
                "it (--program, or load(..., program=True)), or import that code "
                "(load(..., import_backbone=True))"
            )
        # Each block and stage has weights: the file bounds what is built.
        if max(model.get("num_blocks", 1), model.get("num_stages", 1)) > len(
            self._arrays
        ):
            raise file.tampered(self._path, "more blocks than weights")
        built = registry.build(model)
        size = self.preprocessing.size
        views = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
        expected = jax.eval_shape(
            lambda views: built.init(jax.random.key(0), views, train=False), views
        )
        shapes = {path: leaf.shape for path, leaf in network.flat(expected).items()}
        if shapes != {path: leaf.shape for path, leaf in self._arrays.items()}:
            raise file.tampered(self._path, "the weights do not fit the network")
        return built

    def _exported(self, program: np.ndarray) -> network.Program | None:
        """Reads the file's own program; None, with a warning, where that fails."""
        size = self.preprocessing.size
        views = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
        # Readers of what another version wrote raise whatever they raise.
        try:
            exported = jax.export.deserialize(bytearray(program.tobytes()))
            text = exported.mlir_module()
            result = jax.eval_shape(exported.call, self._arrays, views)
        except Exception as error:
            self._rebuild_because(error)
            return None
        allowed = sum(text.count(f"custom_call @{name}(") for name in _HARMLESS_CALLS)
        if text.count("custom_call") != allowed:
            raise ValueError("its program calls functions outside itself")
        if result.shape != (1, 2) or result.dtype != np.float32:
            raise ValueError(f"its program gives {result.dtype} {list(result.shape)}")
        return exported.call

    def _run(self, views: np.ndarray) -> np.ndarray:
        """Computes the logits [b, 2] of a batch."""
        if self._on_device is None:
            self._on_device = jax.device_put(self._arrays)
        parts = np.split(views, parallel.parts(len(views)))
        size = len(parts[0])
        if size not in self._compiled:
            compiled = self._lowered(parts[0]).compile()
            self._check(compiled, size)
            self._compiled[size] = compiled
        compiled = self._compiled[size]
        return np.concatenate(
            parallel.at_once(
                lambda part: np.asarray(compiled(self._on_device, part)), parts
            )
        )

    def _check(self, compiled: jax.stages.Compiled, batch_size: int) -> None:
        """Compares logits with those that the file states; see `logits`."""
        views = network.check_views(self.preprocessing.size)
        views = np.resize(views, (batch_size, *views.shape[1:]))
        expected = np.resize(self._expected, (batch_size, 2))
        logits = np.asarray(compiled(self._on_device, views))
        tolerance = self._tolerance
        if not np.allclose(logits, expected, rtol=tolerance, atol=tolerance):
            otherwise = (
                ""
                if self._program
                else (
                    "; or, where you trust the file, run the program in it (--program)"
                )
            )
            raise UserError(
                f"{self._path} does not score here as where it was exported: logits "
                f"{np.round(logits[0], 3).tolist()} instead of "
                f"{np.round(expected[0], 3).tolist()} for the same picture; use "
                f"fdftnet_jax {self._version} or another device (JAX_PLATFORMS=cpu)"
                f"{otherwise}"
            )

    def _lowered(self, views: np.ndarray) -> jax.stages.Lowered:
        if self._program is not None:
            # It is for some kinds of devices, and for a time.
            try:
                return jax.jit(self._program).lower(self._on_device, views)
            except Exception as error:
                self._rebuild_because(error)
        program = network.build(self.card["model"], self.preprocessing.scaling)
        return jax.jit(program).lower(self._on_device, views)

    def _rebuild_because(self, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        warnings.warn(
            f"the program in {self._path} cannot be used here ({reason}): the network "
            "is built by the package's code",
            stacklevel=2,
        )
        self._program = None
        self.model()

    def view(self, image: Image) -> np.ndarray:
        """The views of a picture or of an image file, as `logits` takes them.

        Args:
          image: [h, w, 3] uint8 RGB, or a path.

        Returns:
          [size, size, 3] or [v, size, size, 3] uint8.

        Raises:
          UserError: it is no picture.
        """
        if isinstance(image, str | os.PathLike):
            image = image_files.decode(image, self.preprocessing.decoding)
        image = np.asarray(image)
        if (
            image.ndim != 3
            or image.shape[2] != 3
            or image.dtype != np.uint8
            or not image.size
        ):
            raise UserError(
                f"expected a picture [h, w, 3] uint8 RGB, found {list(image.shape)} "
                f"{image.dtype}; give such arrays, or paths of image files"
            )
        return self.preprocessing(image)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _chunks(images: Iterable[Image], count: int) -> Iterator[list[Image]]:
    rest = iter(images)
    while chunk := list(itertools.islice(rest, count)):
        yield chunk


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
