"""Finds the faces of a picture, and the square that is cut out around each.

Detectors are libraries' own, behind one interface, `FaceDetector`. What they need is
imported when one is constructed.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import cv2
import cv2.data
import numpy as np

from fdftnet_jax.errors import UserError


class Face(NamedTuple):
    """A box around a face, within the picture, and how sure the detector is of it."""

    x: int  # The leftmost column of pixels.
    y: int  # The topmost row.
    width: int
    height: int
    confidence: float  # Higher is surer; its range is the detector's own.


class FaceDetector(Protocol):
    """Finds faces in pictures.

    Attributes:
      name: of the detector, for people.
      min_confidence: below this, most of what it finds is no face.
    """

    name: str
    min_confidence: float

    @staticmethod
    def version() -> str:
        """Versions of what determines its results; UserError where that is missing."""

    def __call__(self, image: np.ndarray, smallest: int) -> list[Face]:
        """Finds faces of all confidences, in any order.

        Args:
          image: [height, width, 3] uint8 RGB.
          smallest: side of the smallest faces that are looked for, in pixels.
        """


class Cascade:
    """The Haar cascade `frontalface_alt2` that comes with OpenCV 4.

    Finds upright faces that look at the camera, from the brows to the chin. Its
    confidence is the number of windows that agree on a face.
    """

    name = "cascade"
    min_confidence = 5.0
    _FILE = "haarcascade_frontalface_alt2.xml"

    def __init__(self) -> None:
        self._cascade = cv2.CascadeClassifier(cv2.data.haarcascades + self._FILE)

    @staticmethod
    def version() -> str:
        """OpenCV's version and the cascade's name."""
        return f"OpenCV {cv2.__version__}, {Cascade._FILE}"

    def __call__(self, image: np.ndarray, smallest: int) -> list[Face]:
        """See `FaceDetector`."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        boxes, agreeing = self._cascade.detectMultiScale2(
            grey, scaleFactor=1.1, minNeighbors=2, minSize=(smallest, smallest)
        )
        # Of no face at all, OpenCV returns empty tuples.
        return [
            Face(int(x), int(y), int(width), int(height), float(count))
            for (x, y, width, height), count in zip(
                boxes, np.ravel(agreeing), strict=True
            )
        ]


class Mtcnn:
    """The `mtcnn` package, which carries its weights and computes with TensorFlow.

    Finds turned, tilted and half-hidden faces too, from the hair line to the chin. Its
    confidence is a probability.
    """

    name = "mtcnn"
    min_confidence = 0.95
    # Side, in pixels, to which the smallest faces are shrunk before they are looked
    # for. The package's own search starts at 20; asked for a larger start it fails on
    # some picture sizes, and reports that as no face.
    _SMALLEST = 40
    # A picture needs this many pixels a side for one level of its pyramid.
    _LEAST = 24

    def __init__(self) -> None:
        self.version()
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        # TensorFlow greets on standard error.
        with _quiet():
            import mtcnn
            import tensorflow as tf

            # Videos are prepared in parallel; and one device gives one result.
            tf.config.set_visible_devices([], "GPU")
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
            self._detector = mtcnn.MTCNN()

    @staticmethod
    def version() -> str:
        """Versions of both packages."""
        missing = [
            name
            for name in ("mtcnn", "tensorflow")
            if not importlib.util.find_spec(name)
        ]
        if missing:
            raise UserError(
                "expected the packages mtcnn and tensorflow for config.detector="
                f"'mtcnn', found no {' and no '.join(missing)}; install them with: pip "
                "install 'mtcnn>=1,<2' tensorflow (or '.[faces]' in the repository), "
                "or take config.detector='cascade'"
            )
        # TensorFlow's wheels for one kind of machine have names of their own.
        wheel, *_ = importlib.metadata.packages_distributions()["tensorflow"]
        return (
            f"mtcnn {importlib.metadata.version('mtcnn')}, "
            f"TensorFlow {importlib.metadata.version(wheel)}"
        )

    def __call__(self, image: np.ndarray, smallest: int) -> list[Face]:
        """See `FaceDetector`."""
        height, width = image.shape[:2]
        scale = min(1.0, self._SMALLEST / smallest)
        size = round(width * scale), round(height * scale)
        if min(size) < self._LEAST:
            return []
        shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        faces = []
        for face in self._detector.detect_faces(shrunk):
            x, y, w, h = (side / scale for side in face["box"])
            left, right = (round(min(max(v, 0), width)) for v in (x, x + w))
            top, bottom = (round(min(max(v, 0), height)) for v in (y, y + h))
            if right > left and bottom > top:
                confidence = float(face["confidence"])
                faces.append(Face(left, top, right - left, bottom - top, confidence))
        return faces


DETECTORS: dict[str, type[FaceDetector]] = {"cascade": Cascade, "mtcnn": Mtcnn}


class Square(NamedTuple):
    """A square of whole pixels within a picture."""

    x: int  # The leftmost column.
    y: int  # The topmost row.
    side: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Cuts it out of an image [height, width, ...]: [side, side, ...], a view."""
        return image[self.y : self.y + self.side, self.x : self.x + self.side]


def square_around(face: Face, margin: float, height: int, width: int) -> Square:
    """Computes the square around a face: no crop is stretched or filled up.

    Its side is that of the box's longer side times 1 + 2 `margin`, its centre the
    box's. Where it would leave the picture it is shifted inside; where it is larger
    than the picture's shorter side it is made that small.

    Args:
      face: a box that lies in the picture.
      margin: share of the box's longer side that is added on each side.
      height: of the picture, in pixels.
      width: of the picture, in pixels.
    """
    wanted = round(max(face.width, face.height) * (1 + 2 * margin))
    side = max(1, min(wanted, height, width))
    # Twice the centre is a whole number, which no rounding of halves can move.
    x = (2 * face.x + face.width - side) // 2
    y = (2 * face.y + face.height - side) // 2
    return Square(min(max(x, 0), width - side), min(max(y, 0), height - side), side)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what libraries print to standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
