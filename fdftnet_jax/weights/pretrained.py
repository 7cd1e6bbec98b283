"""Backbone weights from elsewhere: files of Keras and PyTorch, in our layout.

`load` reads Keras's `.keras`, `.weights.h5` and `.h5` and PyTorch state dicts in
`.safetensors`, `.pth` and `.pt`; a file is known by what it holds, not by its suffix.
Every layer and every shape must be that of the backbone. The classification top is left
out, and named.

A file does not tell how the images were scaled. That is taken from where the files of
a kind come from, and wrong for files from elsewhere. All expect RGB.

| backbone | file of | comes from | scaling |
|---|---|---|---|
| resnet50v2 | Keras | Keras Applications | [-1, 1] |
| xception | Keras | Keras Applications | [-1, 1] |
| xception | PyTorch | timm's legacy_xception | [-1, 1] |
| squeezenet | Keras | the released FDFtNet code | [0, 1] |
| squeezenet | PyTorch | torchvision's squeezenet1_1 | ImageNet mean and std |
| shallownetv3 | Keras | the released FDFtNet code | [0, 1] |
| efficientnet_lite0 | PyTorch | the port of the release | [-1, 1] |
| vit | PyTorch | CLIP, of timm or Hugging Face | CLIP's mean and std |
| vit | PyTorch | DINOv2, of timm or Hugging Face | ImageNet mean and std |
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fdftnet_jax.errors import UserError
from fdftnet_jax.models import vit
from fdftnet_jax.weights import keras_files, torch_files, torch_pickles
from fdftnet_jax.weights.matching import Fit, fit_keras, fit_torch

# (backbone, origin of the file): scaling of the images; '' where the variant says it.
_SCALINGS = {
    ("resnet50v2", "keras"): "minus_one_one",
    ("xception", "keras"): "minus_one_one",
    ("squeezenet", "keras"): "zero_one",
    ("shallownetv3", "keras"): "zero_one",
    ("squeezenet", "torch"): "imagenet",
    ("xception", "torch"): "minus_one_one",
    ("efficientnet_lite0", "torch"): "minus_one_one",
    ("vit", "torch"): "",
}
_NAMES = {"keras": "Keras", "torch": "PyTorch"}
_OTHER = {"keras": "torch", "torch": "keras"}
_SUFFIXES = (
    *(".keras", ".h5", ".hdf5", ".safetensors"),
    *(".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin", ".tar"),
)


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """Source of pre-trained weights, and the network and scaling that they need.

    Attributes:
      path: of the file.
      sha256: of the file's bytes, in hexadecimal.
      format: 'keras', 'weights.h5', 'h5', 'safetensors' or 'torch'.
      variant: of the backbone, for `get_backbone`.
      scaling: of the images, a key of `preprocess.SCALINGS`, by the table above.
      left_out: the file's names of the top's tensors.
    """

    path: str
    sha256: str
    format: str
    variant: str
    scaling: str
    left_out: tuple[str, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WeightsInfo":
        """Rebuilds what `dataclasses.asdict` gave, from JSON too."""
        return cls(**{**values, "left_out": tuple(values["left_out"])})


@dataclasses.dataclass(frozen=True)
class _Source:
    """An open file.

    Attributes:
      format: as in `WeightsInfo`.
      origin: 'keras' or 'torch'.
      model: what the file calls its model, '' where it does not.
      fit: matches it with the backbone of a name.
    """

    format: str
    origin: str
    model: str
    fit: Callable[[str], Fit]


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is meant for `load`, not a workdir: a file, or named like one."""
    path = Path(path)
    named_so = path.suffix.lower() in _SUFFIXES
    return path.is_file() or (named_so and not path.is_dir())


def load(
    path: str | os.PathLike[str], backbone: str
) -> tuple[dict[str, Any], dict[str, Any], WeightsInfo]:
    """Reads the weights of a backbone.

    Args:
      path: the file.
      backbone: one of the package's.

    Returns:
      `params` and `batch_stats`, trees of float32 NumPy arrays that fit
      `get_backbone(backbone, None, variant=info.variant)`, and `info`.

    Raises:
      UserError: no such file, another format, a damaged file, or one that does not fit
        the backbone: the tensors that are missing, surplus or misshapen are counted,
        and the first of them listed.
    """
    path = Path(path)
    if not any(backbone == name for name, _ in _SCALINGS):
        known = ", ".join(sorted({name for name, _ in _SCALINGS}))
        raise UserError(
            f"cannot load {path} into the backbone {backbone!r}: weights files are for "
            f"{known}; give the workdir of a run"
        )
    with _open(path) as source:
        if (backbone, source.origin) not in _SCALINGS:
            raise UserError(
                f"{path} is a file of {_NAMES[source.origin]}, none is known with "
                f"{backbone}: give a file of {_NAMES[_OTHER[source.origin]]}"
            )
        fit = source.fit(backbone)
        if fit.problems:
            raise UserError(_misfit(path, source, backbone, fit.problems))
        variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
        for slot, tensor in fit.found:
            tree = variables
            for key in slot.path[:-1]:
                tree = tree.setdefault(key, {})
            array = _float32(tensor, f"{slot.layer} in {path}")
            tree[slot.path[-1]] = np.ascontiguousarray(array.transpose(slot.axes))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    info = WeightsInfo(
        path=os.fspath(path),
        sha256=sha256,
        format=source.format,
        variant=fit.variant,
        scaling=_SCALINGS[backbone, source.origin] or vit.VARIANTS[fit.variant].scaling,
        left_out=tuple(fit.left_out),
    )
    return variables["params"], variables["batch_stats"], info


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Source]:
    """Chooses the reader by what the file holds."""
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"expected a weights file at {path}, {found}: give its path")
    with path.open("rb") as file:
        head = file.read(64)
    members = _members(path)
    # A file of PyTorch is a pickle, or an archive with one.
    pickled = any(name.endswith("/data.pkl") for name in members)
    if head.startswith(b"\x89HDF\r\n\x1a\n") or "model.weights.h5" in members:
        with keras_files.open_file(path) as keras:
            fit = functools.partial(fit_keras, keras)
            yield _Source(keras.format, "keras", keras.model, fit)
    # Eight bytes of length, then JSON.
    elif head[8:9] == b"{":
        fit = functools.partial(fit_torch, torch_files.read(path))
        yield _Source("safetensors", "torch", "", fit)
    elif pickled or head[:1] == b"\x80":
        fit = functools.partial(fit_torch, torch_pickles.read(path))
        yield _Source("torch", "torch", "", fit)
    else:
        raise UserError(f"cannot read {path}: {_reason(path, head)}")


def _members(path: Path) -> list[str]:
    """Members of a zip archive; none where it is no whole archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def _reason(path: Path, head: bytes) -> str:
    """Why a file is none that can be read, and what to do."""
    text = head.lstrip().lower()
    suffix = path.suffix.lower()
    if not head:
        return "it is empty; get the file again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page; download the file itself, not the page that shows it"
    if text.startswith(b"version https://git-lfs"):
        return "it is only a pointer of git-lfs; fetch the file with `git lfs pull`"
    if suffix in _SUFFIXES:
        return f"it is damaged or no {suffix} file; get the file again"
    return (
        "expected Keras's .keras, .weights.h5 or .h5, or a PyTorch state dict in "
        ".safetensors or .pth"
    )


def _float32(tensor: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(tensor[()])
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {where}: get the file again") from error
    # NumPy has no bfloat16, HDF5 files hold it as two bytes without meaning.
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        array = array.view(jnp.bfloat16)
    elif array.dtype.kind != "f":
        raise UserError(
            f"{where} holds {array.dtype} numbers: expected floating point, not "
            "quantised weights"
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{where} holds NaN or infinite numbers: get another file")
    return array


def _misfit(path: Path, source: _Source, backbone: str, problems: str) -> str:
    others = [
        other
        for other, origin in _SCALINGS
        if origin == source.origin and not source.fit(other).problems
    ]
    advice = f"it fits {others[0]}" if others else f"give weights of {backbone}"
    named = f", the weights of {source.model!r}," if source.model else ""
    return f"{path}{named} does not fit {backbone}: {problems}; {advice}"
