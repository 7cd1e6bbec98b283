"""The detector that the package carries, and the examples of the API."""

import dataclasses
import doctest
from pathlib import Path

import numpy as np
import pytest
from pictures import photograph
from PIL import Image
from sklearn.metrics import roc_auc_score

import fdftnet_jax
from fdftnet_jax.data import images, toy
from fdftnet_jax.detector import detector, file

PICTURES = 40
# No training of the toy detector has seen it.
SEED = 12345


@pytest.fixture(scope="module")
def loaded():
    return fdftnet_jax.load("toy")


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_it_tells_pictures_apart_that_it_has_not_seen(loaded, family):
    real = [toy.real_image(SEED, index) for index in range(PICTURES)]
    fake = [toy.fake_image(family, SEED, index) for index in range(PICTURES)]
    scores = loaded.score(real + fake, batch_size=2 * PICTURES)
    assert roc_auc_score([0] * PICTURES + [1] * PICTURES, scores) > 0.9
    called = scores >= 1 / (1 + np.exp(-loaded.threshold))
    assert np.mean(called == np.repeat([False, True], PICTURES)) > 0.8


def test_it_is_small_and_says_that_it_is_a_toy(loaded, monkeypatch, tmp_path):
    assert file.locate("toy").stat().st_size < 4_000_000
    assert loaded.card["toy"] is True
    assert {data["name"] for data in loaded.card["trained_on"]} == {"toy-both"}
    assert loaded.card["config"]["data"]["toy_seed"] != SEED
    # Of the network that its card describes, which the code still builds.
    assert loaded.model() is not None
    # A file of that name is meant before the package's.
    monkeypatch.chdir(tmp_path)
    Path("toy").write_text("no detector")
    with pytest.raises(fdftnet_jax.errors.UserError, match="is no detector"):
        fdftnet_jax.load("toy")


def test_the_examples_of_the_documentation():
    found = doctest.testmod(detector)
    assert found.attempted > 3 and not found.failed


def test_paths_are_decoded_as_the_detector_was_trained(tmp_path):
    path = tmp_path / "half.png"
    opacity = np.full((80, 80, 1), 140, np.uint8)
    pixels = np.concatenate([photograph(80, 80), opacity], axis=-1)
    Image.fromarray(pixels).save(path)
    detector = fdftnet_jax.load("toy")
    scores = []
    for decoding in images.DECODINGS:
        detector.preprocessing = dataclasses.replace(
            detector.preprocessing, decoding=decoding
        )
        by_path, by_pixels = detector.score([path, images.decode(path, decoding)])
        assert by_path == pytest.approx(by_pixels, abs=1e-6)
        scores.append(by_path)
    assert abs(scores[0] - scores[1]) > 1e-3
