"""High dynamic range against the formulas of the standards, in float64."""

import numpy as np
import pytest

from fdftnet_jax.faces import colours

# BT.709 <-> BT.2020 in linear light, by the chromaticities of both standards.
WHITE = np.array([0.3127, 0.3290])
BT709 = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
BT2020 = np.array([[0.708, 0.292], [0.170, 0.797], [0.131, 0.046]])
P3 = np.array([[0.680, 0.320], [0.265, 0.690], [0.150, 0.060]])


def to_xyz(primaries):
    """SMPTE RP 177: linear RGB -> XYZ."""

    def xyz(xy):
        x, y = np.moveaxis(xy, -1, 0)
        return np.stack([x / y, np.ones_like(x), (1 - x - y) / y])

    columns = xyz(primaries)
    return columns * np.linalg.solve(columns, xyz(WHITE))


def pq(light):
    """ST 2084: light in cd/m2 -> signal."""
    y = (light / 10_000) ** (2610 / 16384)
    top = 3424 / 4096 + 2413 / 128 * y
    return (top / (1 + 2392 / 128 * y)) ** (2523 / 32)


def hlg(light):
    """BT.2100: light of a screen of 1,000 cd/m2 -> signal, of grey."""
    scene = (light / 1000) ** (1 / 1.2)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    bright = a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def shown(signal, transfer, primaries=9):
    codes = np.rint(65535 * np.asarray(signal)).astype(np.uint16)
    return colours.to_standard(codes.reshape(1, -1, 3), transfer, primaries)[0]


@pytest.mark.parametrize("primaries", [9, 12])
def test_colours_that_a_screen_can_show_are_the_same_in_pq(primaries):
    standard = np.random.default_rng(0).integers(0, 225, (200, 3))
    # An ordinary screen (BT.1886) whose white has 203 cd/m2.
    light = 203 * (standard / 255) ** 2.4
    wide = {9: BT2020, 12: P3}[primaries]
    wide_light = light @ np.linalg.solve(to_xyz(wide), to_xyz(BT709)).T
    found = shown(pq(np.maximum(wide_light, 0)), colours.PQ, primaries)
    np.testing.assert_allclose(found, standard, atol=1)


def test_grey_is_the_same_in_hlg():
    standard = np.arange(0, 225, 5)
    signal = hlg(203 * (standard / 255) ** 2.4)
    found = shown(np.repeat(signal, 3), colours.HLG)
    np.testing.assert_allclose(found, np.repeat(standard, 3).reshape(-1, 3), atol=1)


def test_the_reference_white_of_both():
    """BT.2408, table 1: 75 % of HLG and 58 % of PQ."""
    in_hlg, in_pq = shown([0.75] * 3, colours.HLG), shown([0.58] * 3, colours.PQ)
    np.testing.assert_allclose(in_hlg, in_pq, atol=2)
    assert 240 < in_hlg.min() < 255


@pytest.mark.parametrize("transfer", [colours.PQ, colours.HLG])
def test_highlights_stay_in_order(transfer):
    ramp = np.linspace(0, 1, 1000)
    found = shown(np.repeat(ramp, 3), transfer)
    assert np.ptp(found, axis=1).max() <= 1
    assert (np.diff(found[:, 0].astype(int)) >= 0).all()
    assert found[0, 0] == 0 and found[-1, 0] == 255


def test_wide_colours_of_standard_range_are_converted():
    """A saturated green of Display P3 lies outside of BT.709; a pale one does not."""
    pale = np.array([[120, 160, 120]])
    light = (pale / 255) ** 2.4 @ np.linalg.solve(to_xyz(P3), to_xyz(BT709)).T
    np.testing.assert_allclose(shown(light ** (1 / 2.4), 1, 12), pale, atol=1)
    assert shown([0, 1, 0], 1, 12).tolist() == [[0, 255, 0]]
