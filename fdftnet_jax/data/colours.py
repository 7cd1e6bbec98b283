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


def show(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """Shows a picture in sRGB, over white.

    Args:
      image: of any mode with 8 bits a value.
      profile: an ICC profile, None or empty for sRGB.

    Returns:
      The picture in mode 'RGB', and a note, '' where there is nothing to say.

    Raises:
      ValueError: most of the picture is transparent.
    """
    colours, opacity = _split_alpha(image)
    transform, note = to_srgb(profile, colours.mode)
    if transform is not None:
        colours = apply(colours, transform)
    elif colours.mode != "RGB":
        colours = colours.convert("RGB")
    if opacity is not None:
        if 2 * sum(opacity.histogram()[:128]) > opacity.width * opacity.height:
            raise ValueError("most of the picture is transparent")
        white = Image.new("RGB", colours.size, "white")
        colours = Image.composite(colours, white, opacity)
    return colours, note


def to_srgb(profile: bytes | None, mode: str) -> tuple[Transform | None, str]:
    """Finds the transform from a colour profile to sRGB.

    Args:
      profile: an ICC profile, None or empty for sRGB.
      mode: of the picture, 'L', 'RGB' or 'CMYK'.

    Returns:
      A transform for `apply`, None where the profile changes nothing or cannot be used;
      and a note, '' where there is nothing to say.
    """
    if not profile:
        return None, ""
    try:
        return _transform(profile, mode), ""
    # (LittleCMS reports some profiles in other ways than PyCMSError.)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None, "its colour profile is broken or of another kind, and is ignored"


def apply(image: Image.Image, transform: Transform) -> Image.Image:
    """Converts a picture by a transform of `to_srgb`; the result has mode 'RGB'."""
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None is for transforms in place.
    return converted


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> Transform | None:
    """The perceptual transform of a profile; None where it changes nothing.

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


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Splits a picture into colours ('L', 'RGB' or 'CMYK') and opacity ('L', or None).

    The colours are not premultiplied. The opacity is 255 where nothing shines through.
    """
    if image.mode in ("L", "RGB", "CMYK") and "transparency" not in image.info:
        return image, None
    if not image.has_transparency_data:
        return image.convert("L" if image.mode == "1" else "RGB"), None
    if image.mode == "La":
        # Pillow cannot divide grey values by their opacity.
        grey, alpha = np.moveaxis(np.asarray(image).astype(np.uint16), -1, 0)
        divided = np.minimum(np.rint(grey * 255 / np.maximum(alpha, 1)), 255)
        return Image.fromarray(divided.astype(np.uint8)), image.getchannel(1)
    image = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    opacity = image.getchannel("A")
    opaque = opacity.getextrema() == (255, 255)
    colours = image.convert("L" if image.mode == "LA" else "RGB")
    return colours, None if opaque else opacity
