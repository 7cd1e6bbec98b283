"""Real and fake faces as a prepared data set: a TFDS builder without TensorFlow.

A folder of images, or the embedded toy, is written once as ArrayRecord files of PNG
images at their native size, kept in a cache, and read by random access. The name of a
cache entry carries a hash of all that determines its content: another folder, fraction
or changed file is another entry.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, SupportsIndex

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
import threadpoolctl
from absl import logging
from tqdm import tqdm

from fdftnet_jax.data import images, splits, toy
from fdftnet_jax.data.splits import CLASSES, SPLITS, Example
from fdftnet_jax.errors import UserError

# Toy images of different splits come from different ranges of this length.
_TOY_RANGE = 2**24
# Images that may wait in memory for the writer of a preparation.
_BLOCK = 256


@dataclasses.dataclass(eq=False, kw_only=True)
class FacesConfig(tfds.core.BuilderConfig):
    """What both kinds of data set have; attributes follow from the subclass's fields.

    Attributes:
      title: short name for people.
      examples: the examples of each split that has any.
      expected: the splits that were asked for and must not be empty.
    """

    name: str = ""
    title: str = dataclasses.field(init=False)
    examples: dict[str, list[Example]] = dataclasses.field(init=False)
    expected: list[str] = dataclasses.field(init=False)

    def image(self, split: str, index: int) -> np.ndarray:
        """Returns the image of `examples[split][index]`, [h, w, 3] uint8."""
        raise NotImplementedError


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(FacesConfig):
    """A folder of images; constructing the config lists the folder.

    Attributes:
      dir: the folder, laid out as `splits.list_images` says; made absolute.
      group_by: see `splits.group_of`.
      generator_by: see `splits.generator_of`.
      fractions: see `splits.split_of`.

    Raises:
      UserError: at construction, if the folder or a rule does not fit.
    """

    dir: str
    group_by: str = "file"
    generator_by: str = "folder"
    fractions: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.dir:
            raise UserError(
                "expected the path of a folder of images, found an empty one; give it "
                "with --config.data.dir=PATH"
            )
        self.dir = splits.resolve(self.dir)
        files = splits.list_images(self.dir)
        self.examples = splits.assign(
            files,
            group_by=self.group_by,
            generator_by=self.generator_by,
            fractions=self.fractions,
        )
        if files[0].split:
            self.expected = list(self.examples)
        else:
            self.expected = [s for s in SPLITS if self.fractions.get(s, 0) > 0]
        self.title = os.path.basename(self.dir)
        stats = [os.stat(os.path.join(self.dir, file.path)) for file in files]
        content = [
            [self.dir, self.group_by, self.generator_by],
            sorted(self.fractions.items()),
            [
                (file.path, stat.st_size, stat.st_mtime_ns)
                for file, stat in zip(files, stats, strict=True)
            ],
        ]
        plain = re.sub(r"[^A-Za-z0-9_.]", "_", self.title)[:40]
        self.name = f"folder-{plain}-{_hash(content)}"
        self.description = f"Images of {self.dir}"

    def image(self, split: str, index: int) -> np.ndarray:
        """Decodes a file; raises ImageError if it cannot be read."""
        return images.decode(os.path.join(self.dir, self.examples[split][index].path))


@dataclasses.dataclass(eq=False, kw_only=True)
class ToyConfig(FacesConfig):
    """The embedded toy.

    Attributes:
      family: 'upsampled', 'blended', or 'both', which alternates them.
      seed: seed of the pictures.
      per_class: images of each class in each split.

    Raises:
      UserError: at construction, if a value is unknown.
    """

    family: str = "both"
    seed: int = 0
    per_class: Mapping[str, int]

    def __post_init__(self) -> None:
        choices = ("both", *toy.FAMILIES)
        if self.family not in choices:
            raise UserError(
                f"expected the toy family to be one of {', '.join(choices)}, found "
                f"{self.family!r}; choose one of them"
            )
        numbers = self.per_class.values()
        unknown = set(self.per_class) - set(SPLITS)
        if unknown or min(numbers, default=0) < 0 or not any(numbers):
            raise UserError(
                f"expected toy examples for {', '.join(SPLITS)} of 0 or more, found "
                f"{dict(self.per_class)}; correct them"
            )
        self.examples = {s: self._split(s, n) for s, n in self.per_class.items() if n}
        self.expected = list(self.examples)
        self.title = f"toy-{self.family}"
        content = [toy.VERSION, self.family, self.seed, sorted(self.per_class.items())]
        self.name = f"{self.title}-{_hash(content)}"
        self.description = f"Toy forgeries, {self.family}, seed {self.seed}"

    def _split(self, split: str, number: int) -> list[Example]:
        """Lists `number` real images, then as many fake ones."""
        families = toy.FAMILIES if self.family == "both" else (self.family,)
        real = [f"{split}/real/{i:06d}" for i in range(number)]
        examples = [Example(path, 0, path, "") for path in real]
        for i in range(number):
            family = families[i % len(families)]
            path = f"{split}/fake/{family}/{i:06d}"
            examples.append(Example(path, 1, path, family))
        return examples

    def image(self, split: str, index: int) -> np.ndarray:
        """Makes a picture."""
        example = self.examples[split][index]
        position = index % self.per_class[split]
        number = SPLITS.index(split) * _TOY_RANGE + position
        if example.label == 0:
            return toy.real_image(self.seed, number)
        return toy.fake_image(example.generator, self.seed, number)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class ForgeryFaces(tfds.core.GeneratorBasedBuilder):
    """Records {image: PNG at native size, label, path, group, generator}."""

    # Raised when the same files would give other records.
    VERSION = tfds.core.Version("1.0.0")
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
      name: short name for people and file names: the folder's, or 'toy-<family>'.
      directory: the folder of images, absolute; '' for the toy.
      fingerprint: differs wherever the content does.
      splits: number of images in each split that has any.
    """

    def __init__(self, builder: ForgeryFaces):
        """Wraps a prepared builder."""
        config = builder.builder_config
        self.name: str = config.title
        self.directory: str = getattr(config, "dir", "")
        self.fingerprint: str = config.name
        self.splits = {split: len(e) for split, e in config.examples.items()}
        self._builder = builder

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
    names = SPLITS if split == "all" else (split,)
    examples = [e for name in names for e in config.examples.get(name, [])]
    fake = sum(example.label for example in examples)
    if not 0 < fake < len(examples):
        groups = {e.group for split in config.examples.values() for e in split}
        if not examples and split not in config.expected:
            raise UserError(
                f"expected a split {split!r} in {config.title}, found "
                f"{', '.join(config.examples)}; make a folder {split}/ with real/ and "
                "fake/ in it, or give the split a fraction above 0"
            )
        raise UserError(
            f"expected real and fake images in the split {split!r} of {config.title}, "
            f"found {len(examples) - fake} real and {fake} fake ({len(groups)} groups "
            "in all splits); add images, or change the split's fraction or the grouping"
        )


def prepare(
    data: ml_collections.ConfigDict,
    needed: Sequence[str] = (),
    *,
    only_needed: bool = False,
) -> FaceDataset:
    """Prepares a data set, or finds it in the cache.

    A preparation writes to a temporary folder that takes its name at the end, so an
    interrupted one is never taken for a finished one. Only a terminal sees a progress
    bar.

    Args:
      data: the section `data` of a config.
      needed: splits that must hold both classes, besides those that the fractions, the
        folder or the toy's numbers name.
      only_needed: whether these others may be empty.

    Raises:
      UserError: if the folder, an image in it or a rule does not fit, if a needed split
        or class is empty, or if the cache cannot be written.
    """
    config: FacesConfig
    if data.name == "folder":
        config = FolderConfig(
            dir=data.dir,
            group_by=data.group_by,
            generator_by=data.generator_by,
            fractions=dict(data.fractions),
        )
    elif data.name == "toy":
        config = ToyConfig(
            family=data.family, seed=data.toy_seed, per_class=dict(data.toy_examples)
        )
    else:
        raise UserError(
            f"expected config.data.name to be 'folder' or 'toy', found {data.name!r}; "
            "choose one of them"
        )
    for split in [*needed, *([] if only_needed else config.expected)]:
        check_split(config, split)
    return FaceDataset(_prepared(config, _cache_dir(data.cache_dir)))


def _cache_dir(configured: str) -> Path:
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fdftnet_jax"


def _prepared(config: FacesConfig, cache: Path) -> ForgeryFaces:
    """Returns a builder whose files are in the cache."""

    def build() -> ForgeryFaces:
        return ForgeryFaces(config=config, data_dir=cache, file_format="array_record")

    with _quiet_tfds():
        builder = build()
        if builder.is_prepared():
            return builder
        try:
            builder.download_and_prepare()
        except OSError as error:
            # Another process may have finished the same preparation first.
            if not build().is_prepared():
                raise UserError(
                    f"expected to write prepared images to {cache}, found: {error}; "
                    "free space there or choose another config.data.cache_dir"
                ) from error
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
