"""From a decoded frame of a video to RGB as an ordinary screen shows it.

High dynamic range (HLG, PQ) and wide gamuts (BT.2020, Display P3) are brought to the
standard range of BT.709, whose reference white they have at 203 cd/m2 (ITU-R BT.2408).
Numbers of transfer functions and primaries are those of ITU-T H.273.
"""

from typing import Any

import numpy as np

PQ, HLG = 16, 18
_BT2020, _P3 = 9, 12
# Light of the reference white and of the brightest white, in cd/m2.
_WHITE, _PEAK_PQ, _PEAK_HLG = 203.0, 10_000.0, 1_000.0
# Exponent of an ordinary screen (BT.1886), and of HLG's on one of 1,000 cd/m2.
_SCREEN, _SYSTEM = 2.4, 1.2
# From this share of the reference white on, highlights are compressed.
_KNEE = 0.8
# Luminance from RGB in BT.2020.
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
# Linear RGB of these primaries -> linear RGB of BT.709 (both with white D65).
_TO_BT709 = {
    _BT2020: np.array(
        [
            [1.660491, -0.587641, -0.072850],
            [-0.124550, 1.132900, -0.008349],
            [-0.018151, -0.100579, 1.118730],
        ],
        np.float32,
    ),
    _P3: np.array(
        [
            [1.224940, -0.224940, 0.0],
            [-0.042057, 1.042057, 0.0],
            [-0.019638, -0.078636, 1.098274],
        ],
        np.float32,
    ),
}
_DOLBY = ("dav1", "dva1", "dvav", "dvh1", "dvhe")


def shown(frame: Any, width: int, height: int, stream: Any) -> tuple[np.ndarray, str]:
    """Converts a frame to what is shown of it.

    Args:
      frame: of PyAV.
      width: of the pixels that are returned, as the height.
      height: in pixels.
      stream: that it is of.

    Returns:
      pixels: [height, width, 3] uint8 RGB.
      note: what was done to its colours; '' where they are ordinary.
    """
    sides = {"width": width, "height": height, "interpolation": "BICUBIC"}
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    if transfer in (PQ, HLG):
        pixels = frame.to_ndarray(format="rgb48le", **sides)
        name = "HLG" if transfer == HLG else "PQ"
        note = f"high dynamic range ({name}), shown in standard range"
        return to_standard(pixels, transfer, primaries), note
    if primaries in _TO_BT709:
        pixels = frame.to_ndarray(format="rgb48le", **sides)
        return to_standard(pixels, transfer, primaries), ""
    note = ""
    if stream.codec_context.codec_tag in _DOLBY:
        note = "Dolby Vision, whose colours are not read"
    return frame.to_ndarray(format="rgb24", **sides), note


def to_standard(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Brings RGB to BT.709 in standard range.

    Args:
      pixels: [height, width, 3] uint16, the signal in 0..65535.
      transfer: PQ, HLG, or another for the exponent of a screen.
      primaries: of H.273.

    Returns:
      [height, width, 3] uint8.
    """
    signal = np.arange(2**16) / (2**16 - 1)
    # Light of each value, 1 for the reference white.
    light = _light(signal, transfer).astype(np.float32)[pixels]
    if transfer == HLG:
        # The screen's part of HLG (BT.2100): its contrast grows with the luminance.
        luminance = np.maximum(light @ _LUMINANCE, 1e-6)
        light *= (_PEAK_HLG / _WHITE) * luminance[..., None] ** (_SYSTEM - 1)
    if primaries in _TO_BT709:
        light = light @ _TO_BT709[primaries].T
    if transfer in (PQ, HLG):
        # All three colours alike, so that a hue stays.
        most = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
        rest = 1 - _KNEE
        above = _KNEE + rest * (1 - np.exp((_KNEE - most) / rest))
        light *= np.where(most > _KNEE, above, most) / most
    screen = np.clip(light, 0, 1) ** (1 / _SCREEN)
    return np.rint(255 * screen).astype(np.uint8)


def _light(signal: np.ndarray, transfer: int) -> np.ndarray:
    """The light of a signal in [0, 1]: of the scene for HLG, else of the screen."""
    if transfer == PQ:
        # SMPTE ST 2084.
        m1, m2 = 2610 / 16384, 2523 / 4096 * 128
        c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        root = signal ** (1 / m2)
        y = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
        return y * _PEAK_PQ / _WHITE
    if transfer == HLG:
        # BT.2100: the inverse of a camera's curve.
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        return np.where(
            signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12
        )
    return signal**_SCREEN
