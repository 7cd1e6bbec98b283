"""Colours as a viewer shows them: in sRGB, over white."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

# A profile that changes no colour by more than this is taken for sRGB itself, as most
# are: its pictures stay as they are.
_ROUNDING = 1
# Steps of each of red, green and blue that a profile is tried on.
_STEPS = 18
Transform = ImageCms.ImageCmsTransform


def to_srgb(profile: bytes | None, mode: str) -> tuple[Transform | None, str]:
    """The way from a colour profile to sRGB.

    Args:
      profile: an ICC profile, None or empty for sRGB.
      mode: of the picture, 'L', 'RGB' or 'CMYK'.

    Returns:
      What `ImageCms.applyTransform` takes, to mode 'RGB', or None where the profile
      changes nothing or cannot be used; and a note, '' where there is nothing to say.
    """
    if not profile:
        return None, ""
    try:
        return _transform(profile, mode), ""
    # (LittleCMS reports some profiles in other ways than PyCMSError.)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None, "its colour profile is broken or of another kind, and is ignored"


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Transform | None:
    """A perceptual transform; None where it changes nothing.

    Raises:
      PyCMSError: the profile cannot be used for this mode.
    """
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
    )
    if mode == "CMYK":
        return transform
    levels = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    if mode == "L":
        tried = Image.fromarray(levels[None])
    else:
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        tried = Image.fromarray(grid.reshape(_STEPS, -1, 3))
    before = np.asarray(tried.convert("RGB"), int)
    after = np.asarray(ImageCms.applyTransform(tried, transform), int)
    return None if np.abs(before - after).max() <= _ROUNDING else transform


def apply(image: Image.Image, transform: Transform) -> Image.Image:
    """Converts a picture by a transform of `to_srgb`; in mode 'RGB'."""
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Splits a picture into its colours, not premultiplied, and its opacity.

    Args:
      image: of any mode but those of 16 bits and more a value.

    Returns:
      The colours in mode 'L', 'RGB' or 'CMYK'; and the opacity in mode 'L', 255 for
      opaque, None where all is.
    """
    if image.mode in ("L", "RGB", "CMYK") and "transparency" not in image.info:
        return image, None
    if not image.has_transparency_data:
        return image.convert("L" if image.mode == "1" else "RGB"), None
    if image.mode in ("La", "LA"):
        if image.mode == "La":
            image = _la(image)
        return image.getchannel("L"), image.getchannel("A")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    opacity = image.getchannel("A")
    return image.convert("RGB"), None if opacity.getextrema() == (255, 255) else opacity


def _la(image: Image.Image) -> Image.Image:
    """Divides premultiplied grey values by their opacity (Pillow cannot)."""
    grey, opacity = np.moveaxis(np.asarray(image).astype(np.uint16), -1, 0)
    shown = np.minimum(np.rint(grey * 255 / np.maximum(opacity, 1)), 255)
    both = np.stack([shown, opacity], axis=-1).astype(np.uint8)
    return Image.fromarray(both, "LA")


def over_white(colours: Image.Image, opacity: Image.Image) -> Image.Image:
    """Lays colours [mode 'RGB'] over white by their opacity [mode 'L']."""
    white = Image.new("RGB", colours.size, "white")
    return Image.composite(colours, white, opacity)
