"""Real and fake faces as a prepared data set: a TFDS builder without TensorFlow.

A folder of images, a set of the paper, or the embedded toy, is written once as
ArrayRecord files of PNG images at their native size, kept in a cache, and read by
random access. The name of a cache entry carries a hash of all that determines its
content: another picture, split or name is another entry.
"""

import contextlib
import io
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, SupportsIndex

import ml_collections
import tensorflow_datasets as tfds
import threadpoolctl
from absl import logging
from tqdm import tqdm

from fdftnet_jax.data import caches, images
from fdftnet_jax.data.origins import FacesConfig, FolderConfig, ToyConfig, entry
from fdftnet_jax.data.splits import CLASSES, SPLITS
from fdftnet_jax.errors import UserError
from fdftnet_jax.paper_sets import sets

# Images that may wait in memory for the writer of a preparation.
_BLOCK = 256


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
            return images.encode_png(config.image(split, index))

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

    def __init__(self, builder: ForgeryFaces):
        """Wraps a prepared builder."""
        config = builder.builder_config
        self.name: str = config.title
        self.directory: str = getattr(config, "dir", "")
        self.kind: str = getattr(config, "which", "folder" if self.directory else "toy")
        self.splits = {split: len(e) for split, e in config.examples.items()}
        self._builder = builder

    def counts(self, split: str) -> tuple[int, int]:
        """The number of real and of fake images of a split, or of 'all'."""
        return _count(self._builder.builder_config, split)

    def fingerprint(self, splits: Sequence[str]) -> str:
        """A hash of what is in these splits: it differs wherever that does.

        Args:
          splits: any of the splits; one that is not there counts as empty.
        """
        return self._builder.builder_config.fingerprint(splits)

    def digests(self, splits: Sequence[str]) -> dict[str, str]:
        """Path -> `inspection.digest`, of the files of these splits; {} for the toy."""
        return self._builder.builder_config.digests(splits)

    def source(self, split: str) -> Records:
        """Opens a split, or 'all' of them one after another.

        Raises:
          UserError: if there is no such split, or one of its classes is empty.
        """
        check_split(self._builder.builder_config, split)
        names = SPLITS if split == "all" else (split,)
        return Records(
            self._builder.as_data_source(
                "+".join(name for name in names if name in self.splits),
                decoders={"image": tfds.decode.SkipDecoding()},
            )
        )


def check_split(config: FacesConfig, split: str) -> None:
    """Raises UserError unless a split, or 'all', has images of both classes."""
    if split not in (*SPLITS, "all"):
        raise UserError(
            f"expected a split among {', '.join(SPLITS)} and all, found {split!r}; "
            "choose one of them"
        )
    real, fake = _count(config, split)
    if real and fake:
        return
    if not (real or fake or split in config.expected):
        raise UserError(
            f"expected a split {split!r} in {config.title}, found "
            f"{', '.join(config.examples)}; {config.to_get_split}"
        )
    groups = {e.group for examples in config.examples.values() for e in examples}
    raise UserError(
        f"expected real and fake images in the split {split!r} of {config.title}, "
        f"found {real} real and {fake} fake ({len(groups)} groups in all splits); add "
        "images, or change the split's fraction or the grouping"
    )


def _count(config: FacesConfig, split: str) -> tuple[int, int]:
    """The number of real and of fake images of a split, or of 'all'."""
    names = SPLITS if split == "all" else (split,)
    labels = [e.label for name in names for e in config.examples.get(name, [])]
    return labels.count(0), labels.count(1)


def prepare(
    data: ml_collections.ConfigDict,
    needed: Sequence[str] = (),
    *,
    only_needed: bool = False,
) -> FaceDataset:
    """Prepares a data set, or finds it in the cache.

    A folder's files are inspected first: those that cannot be used are left out, and
    what makes its figures worth less than they seem is said in a warning each.

    A preparation writes to a temporary folder that takes its name at the end, so an
    interrupted one is never taken for a finished one. Only a terminal sees a progress
    bar.

    Args:
      data: the section `data` of a config.
      needed: splits that must hold both classes.
      only_needed: whether the others, which the fractions, the folder or the toy's
        numbers name, may lack a class without a warning.

    Raises:
      UserError: if the folder, too many images in it or a rule do not fit, if pictures
        leak, if a needed split or class is empty, or if the cache cannot be written.
    """
    cache = caches.cache_dir(data.cache_dir)
    config: FacesConfig
    common = {
        "dir": data.dir,
        "fractions": dict(data.fractions),
        # Runs of earlier versions have no such fields.
        "duplicates": data.get("duplicates", "error"),
        "max_rejected": data.get("max_rejected", 0.05),
        # Where a whole folder is scored, its splits mean nothing.
        "across_splits": not (only_needed and set(needed) == {"all"}),
        "cache": cache,
    }
    if data.name == "folder":
        config = FolderConfig(
            group_by=data.group_by, generator_by=data.generator_by, **common
        )
    elif data.name in sets.NAMES:
        config = sets.PaperSetConfig(
            which=data.name,
            compression=data.get("compression", "c23"),
            limits=dict(data.get("limits", {})),
            **common,
        )
    elif data.name == "toy":
        config = ToyConfig(
            family=data.family, seed=data.toy_seed, per_class=dict(data.toy_examples)
        )
    else:
        raise UserError(
            "expected config.data.name to be one of folder, toy, "
            f"{', '.join(sets.NAMES)}, found {data.name!r}; choose one of them"
        )
    for split in needed:
        check_split(config, split)
    for split in config.expected:
        real, fake = _count(config, split)
        if not ((real and fake) or only_needed):
            warnings.warn(
                f"the split {split!r} of {config.title} cannot be used: it has {real} "
                f"real and {fake} fake images",
                stacklevel=2,
            )
    return FaceDataset(_prepared(config, cache))


def _prepared(config: FacesConfig, cache: Path) -> ForgeryFaces:
    """Returns a builder whose files are in the cache."""

    def build() -> ForgeryFaces:
        return ForgeryFaces(config=config, data_dir=cache, file_format="array_record")

    with _quiet_tfds():
        if (builder := build()).is_prepared():
            return builder
        folder = entry(cache, config.name)
        with caches.writing("the prepared images", cache, config.size * 11 // 10):
            folder.mkdir(parents=True, exist_ok=True)
            with caches.exclusive(folder / ".lock"):
                # Nobody else is writing: these are of processes that were killed.
                for leftover in folder.glob("incomplete.*"):
                    shutil.rmtree(leftover)
                # Nothing is left to do where whoever held the lock has finished.
                build().download_and_prepare()
        # A fresh builder knows only what the files say.
        return build()


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
