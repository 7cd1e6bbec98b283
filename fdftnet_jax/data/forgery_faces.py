"""Real and fake faces as a prepared data set: a TFDS builder without TensorFlow.

A folder of images or the embedded toy is written once as ArrayRecord files of PNG
images at their native size, kept in a cache, and read by random access. The name of a
cache entry carries a hash of all that determines its content: another picture, split or
name is another entry.
"""

import contextlib
import dataclasses
import importlib.util
import io
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, SupportsIndex

import tensorflow_datasets as tfds
import threadpoolctl
from absl import logging
from tqdm import tqdm

from fdftnet_jax.data import caches
from fdftnet_jax.data.folder import Folder
from fdftnet_jax.data.splits import CLASSES, SPLITS, Example
from fdftnet_jax.data.toy import Toy
from fdftnet_jax.errors import UserError

# Images that may wait in memory for the writer of a preparation.
_BLOCK = 256


@dataclasses.dataclass(eq=False, kw_only=True)
class FacesConfig(tfds.core.BuilderConfig):
    """What is written.

    Attributes:
      examples: the examples of each split that has any.
      png: gives the picture of `examples[split][index]`, encoded; for any thread.
    """

    examples: Mapping[str, Sequence[Example]]
    png: Callable[[str, int], bytes]


class ForgeryFaces(tfds.core.GeneratorBasedBuilder):
    """Records {image: PNG at native size, label, path, group, generator}."""

    # Raised when the same files would give other records.
    VERSION = tfds.core.Version("1.1.0")
    # Nothing is downloaded. (TFDS would look for checksums beside this file, with a
    # package that it does not require.)
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="png"),
                "label": tfds.features.ClassLabel(names=list(CLASSES)),
                "path": text,
                "group": text,
                "generator": text,
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {s: self._generate_examples(s) for s in self.builder_config.examples}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        examples = config.examples[split]

        def png(index: int) -> bytes:
            return config.png(split, index)

        with (
            # The toy's many small matrix products are several times slower when BLAS
            # starts threads of its own for each.
            threadpoolctl.threadpool_limits(1, "blas"),
            futures.ThreadPoolExecutor(os.cpu_count()) as pool,
            # `disable=None` shows the bar on a terminal only.
            tqdm(desc=split, total=len(examples), unit=" images", disable=None) as bar,
        ):
            # In blocks, so that no more than a block of images waits in memory.
            for start in range(0, len(examples), _BLOCK):
                block = range(start, min(start + _BLOCK, len(examples)))
                for index, image in zip(block, pool.map(png, block), strict=True):
                    bar.update()
                    # TFDS encodes arrays with TensorFlow, but takes bytes as they are.
                    example = examples[index]._asdict()
                    yield example["path"], {"image": image, **example}


class Records(Sequence):
    """Random access to prepared records, their images still encoded.

    Item i is {image: PNG bytes, label: int, path: str, group: str, generator: str}.
    """

    def __init__(self, source: Sequence[Mapping[str, Any]]):
        """Wraps a TFDS data source that skips the decoding of images."""
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:  # type: ignore[override]
        if not 0 <= i.__index__() < len(self):
            raise IndexError(f"no record {i} among {len(self)}")
        record = dict(self._source[i.__index__()])
        for key in ("path", "group", "generator"):
            record[key] = record[key].decode()
        return record


class FaceDataset:
    """A prepared data set.

    Attributes:
      name: short name for people and file names: the folder's, 'toy-<family>', or that
        of a set of the paper and of its videos' compression.
      kind: the `config.data.name` that it was read by, such as 'folder'.
      directory: the folder of images, absolute; '' for the toy.
      splits: number of images in each split that has any.
    """

    def __init__(self, contents: Folder | Toy, builder: ForgeryFaces):
        """Wraps what is in a data set and the prepared builder of its records."""
        self.name = contents.title
        self.kind: str = contents.kind
        self.directory = contents.dir
        self.splits = {split: len(e) for split, e in contents.examples.items()}
        self._contents = contents
        self._builder = builder

    def counts(self, split: str) -> tuple[int, int]:
        """The number of real and of fake images of a split, or of 'all'."""
        return count(self._contents, split)

    def fingerprint(self, splits: Sequence[str]) -> str:
        """A hash of what is in these splits: it differs wherever that does.

        Args:
          splits: any of the splits; one that is not there counts as empty.
        """
        return self._contents.fingerprint(splits)

    def digests(self, splits: Sequence[str]) -> dict[str, str]:
        """Path -> `leaks.digest`, of the files of these splits; {} for the toy."""
        return self._contents.digests(splits)

    def source(self, split: str) -> Records:
        """Opens a split, or 'all' of them one after another.

        Raises:
          UserError: if there is no such split, or one of its classes is empty.
        """
        check_split(self._contents, split)
        names = SPLITS if split == "all" else (split,)
        return Records(
            self._builder.as_data_source(
                "+".join(name for name in names if name in self.splits),
                decoders={"image": tfds.decode.SkipDecoding()},
            )
        )


def check_split(contents: Folder | Toy, split: str) -> None:
    """Raises UserError unless a split, or 'all', has images of both classes."""
    if split not in (*SPLITS, "all"):
        raise UserError(
            f"expected a split among {', '.join(SPLITS)} and all, found {split!r}; "
            "choose one of them"
        )
    real, fake = count(contents, split)
    if real and fake:
        return
    if not (real or fake or split in contents.expected):
        raise UserError(
            f"expected a split {split!r} in {contents.title}, found "
            f"{', '.join(contents.examples)}; {contents.to_get_split}"
        )
    groups = {e.group for examples in contents.examples.values() for e in examples}
    raise UserError(
        f"expected real and fake images in the split {split!r} of {contents.title}, "
        f"found {real} real and {fake} fake ({len(groups)} groups in all splits); add "
        "images, or change the split's fraction or the grouping"
    )


def count(contents: Folder | Toy, split: str) -> tuple[int, int]:
    """The number of real and of fake images of a split, or of 'all'."""
    names = SPLITS if split == "all" else (split,)
    labels = [e.label for name in names for e in contents.examples.get(name, [])]
    return labels.count(0), labels.count(1)


def write(
    contents: Folder | Toy, cache: Path, pictures: caches.Pictures
) -> FaceDataset:
    """Writes the records of a data set, or finds them in the cache.

    They are written to a temporary folder that takes its name at the end, so an
    interrupted preparation is never taken for a finished one. Only a terminal sees a
    progress bar.

    Args:
      contents: what is written.
      cache: where to.
      pictures: those that a scan has kept.

    Raises:
      UserError: if a file is no longer what it was, the cache cannot be written, or
        this system has no package for the records.
    """
    if importlib.util.find_spec("array_record") is None:
        raise UserError(
            "expected array_record, which keeps the images, found no such package for "
            f"{platform.system()} on {platform.machine()}; train and evaluate on "
            "Linux, on a Mac with Apple silicon, or in WSL on Windows (`fdftnet "
            "predict` and experiments.prepare_faces work here, too)"
        )

    def build() -> ForgeryFaces:
        config = FacesConfig(
            name=contents.name,
            description=contents.description,
            examples=contents.examples,
            png=lambda split, index: contents.png(split, index, pictures),
        )
        return ForgeryFaces(config=config, data_dir=cache, file_format="array_record")

    with _quiet_tfds():
        if (builder := build()).is_prepared():
            return FaceDataset(contents, builder)
        folder = caches.entry(cache, contents.name)
        with caches.writing("the prepared images", cache):
            folder.mkdir(parents=True, exist_ok=True)
            with caches.exclusive(folder / ".lock"):
                # Nobody else is writing: these are of processes that were killed.
                for leftover in folder.glob("incomplete.*"):
                    shutil.rmtree(leftover)
                # Nothing is left to do where whoever held the lock has finished.
                build().download_and_prepare()
        # A fresh builder knows only what the files say.
        return FaceDataset(contents, build())


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Mutes TFDS: it warns of every config, prints, and draws bars without a total."""
    verbosity = logging.get_verbosity()
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            logging.set_verbosity(logging.ERROR)
            yield
    finally:
        logging.set_verbosity(verbosity)
