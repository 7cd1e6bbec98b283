"""Keeps pictures whose right label a person has said, for `fdftnet adapt`.

DIR/real and DIR/fake hold copies of them, as `adapt --corrections DIR` reads them. A
file is named after its content, too: the same picture is there once, under the last
label that it was given.
"""

import hashlib
import os
import re
import shlex
import shutil
from pathlib import Path

from fdftnet_jax import files
from fdftnet_jax.data import images, kinds, splits
from fdftnet_jax.errors import UserError
from fdftnet_jax.serving.uploads import Upload

# Characters of a file's name that are kept.
_STEM = 60


class Corrections:
    """A folder of corrected pictures."""

    def __init__(self, folder: str):
        """Makes DIR/real and DIR/fake; raises UserError where that fails."""
        self.folder = folder
        for label in splits.CLASSES:
            with files.writing("--corrections", Path(folder)):
                try:
                    Path(folder, label).mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UserError(
                        f"cannot make the folder {folder}/{label}: {error.strerror}; "
                        "give another with --corrections"
                    ) from error

    def keep(self, upload: Upload, label: str) -> str:
        """Copies a picture or video under its right label.

        Args:
          upload: the file that was judged.
          label: 'real' or 'fake'; '' takes back what was said of it.

        Returns:
          Where it is now, below the folder; '' where it is no more.

        Raises:
          UserError: the label or the file is none, or the disk refuses.
        """
        if label not in ("", *splits.CLASSES):
            raise UserError("expected the label real or fake, or none")
        name = _name(upload)
        if label:
            target = Path(self.folder, label, name)
            partial = target.with_name(f".{name}.partial")
            with files.writing("the correction", target.parent):
                shutil.copyfile(upload.path, partial)
                os.replace(partial, target)
        for other in splits.CLASSES:
            if other != label:
                Path(self.folder, other, name).unlink(missing_ok=True)
        return f"{label}/{name}" if label else ""

    def count(self) -> dict[str, int]:
        """Number of pictures that are there: label -> count."""
        return {
            label: sum(
                not path.name.startswith(".")
                for path in Path(self.folder, label).iterdir()
            )
            for label in splits.CLASSES
        }

    def command(self, detector: str) -> str:
        """The command that teaches a detector what is in the folder."""
        folder, start = shlex.quote(self.folder), shlex.quote(detector)
        return (
            f"fdftnet adapt --corrections {folder} --from {start} --old OLD "
            "--out new.safetensors"
        )


def _name(upload: Upload) -> str:
    stem, suffix = os.path.splitext(upload.name)
    kind = images.format_of(upload.path)
    if not kind and not kinds.is_video(upload.path):
        raise UserError("expected a picture or a video")
    # `adapt` goes by the suffix.
    if suffix.lower() not in (*images.SUFFIXES, *kinds.VIDEO_SUFFIXES):
        suffix = f".{kind.lower()}" if kind else ".mp4"
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[-_STEM:].strip("_") or "picture"
    with open(upload.path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    return f"{stem}-{digest}{suffix.lower()}"
