"""What `config.data` names, prepared: a folder, a set of the paper, or the toy."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from fdftnet_jax.data import caches, folder, forgery_faces, toy
from fdftnet_jax.errors import UserError
from fdftnet_jax.paper_sets import sets


def prepare(
    data: ml_collections.ConfigDict,
    needed: Sequence[str] = (),
    *,
    only_needed: bool = False,
) -> forgery_faces.FaceDataset:
    """Prepares a data set, or finds it in the cache.

    A folder's files are scanned first: those that cannot be used are left out, and
    what makes its metrics worth less than they seem is said in a warning each.

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
    with caches.Pictures(cache) as pictures:
        # Where a whole folder is scored, its splits mean nothing.
        across_splits = not (only_needed and set(needed) == {"all"})
        contents = _contents(data, across_splits, cache, pictures)
        for split in needed:
            forgery_faces.check_split(contents, split)
        for split in contents.expected:
            real, fake = forgery_faces.count(contents, split)
            if not ((real and fake) or only_needed):
                warnings.warn(
                    f"the split {split!r} of {contents.title} cannot be used: it has "
                    f"{real} real and {fake} fake images",
                    stacklevel=2,
                )
        return forgery_faces.write(contents, cache, pictures)


def _contents(
    data: ml_collections.ConfigDict,
    across_splits: bool,
    cache: Path,
    pictures: caches.Pictures,
) -> folder.Folder | toy.Toy:
    """Finds what `data` names."""
    if data.name == "toy":
        contents = toy.Toy(
            family=data.family, seed=data.toy_seed, per_class=dict(data.toy_examples)
        )
        contents.check()
        return contents
    if data.name not in ("folder", *sets.NAMES):
        raise UserError(
            "expected config.data.name to be one of folder, toy, "
            f"{', '.join(sets.NAMES)}, found {data.name!r}; choose one of them"
        )
    rules = folder.Rules(
        fractions=dict(data.fractions),
        group_by=data.group_by,
        generator_by=data.generator_by,
        duplicates=data.duplicates,
        max_rejected=data.max_rejected,
        decoding=data.decoding,
        across_splits=across_splits,
    )
    if data.name == "folder":
        found = folder.scan(data.dir, rules, cache, pictures)
    else:
        found = sets.scan(
            data.dir,
            sets.PaperSet(data.name, data.compression, dict(data.limits)),
            rules,
            cache,
            pictures,
        )
    folder.publish(found, cache)
    return found
