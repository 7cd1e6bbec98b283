"""The embedded toy as a data set."""

import numpy as np
import pytest

from fdftnet_jax import datasets
from fdftnet_jax.data import images, toy
from fdftnet_jax.errors import UserError


@pytest.fixture
def stub_toy(monkeypatch):
    """Replaces pictures by records of the arguments they are made from."""
    made = []

    def real(seed, index):
        made.append(("real", seed, index))
        return np.full((64, 64, 3), len(made), np.uint8)

    def fake(family, seed, index):
        made.append((family, seed, index))
        return np.full((64, 64, 3), len(made), np.uint8)

    monkeypatch.setattr(toy, "real_image", real)
    monkeypatch.setattr(toy, "fake_image", fake)
    return made


def test_toy_records(data, stub_toy):
    data.toy_seed = 5
    dataset = datasets.prepare(data)
    assert (dataset.name, dataset.directory) == ("toy-both", "")
    assert dataset.splits == {"train": 6, "validation": 2, "test": 4, "finetune": 2}
    records = {r["path"]: r for r in dataset.source("train")}
    assert set(records) == {
        *(f"train/real/{i:06d}" for i in range(3)),
        "train/fake/upsampled/000000",
        "train/fake/blended/000001",
        "train/fake/upsampled/000002",
    }
    blended = records["train/fake/blended/000001"]
    assert (blended["label"], blended["generator"]) == (1, "blended")
    assert records["train/real/000001"]["label"] == 0
    # No picture is used twice, neither within a split nor in two of them.
    assert len(set(stub_toy)) == len(stub_toy) == 14
    assert {seed for _, seed, _ in stub_toy} == {5}


def test_toy_of_one_family(data, stub_toy):
    data.family = "blended"
    assert datasets.prepare(data).name == "toy-blended"
    assert {family for family, _, _ in stub_toy} == {"real", "blended"}


@pytest.mark.parametrize(
    "change", [{"toy_seed": 1}, {"family": "blended"}, {"version": 10**6}, {"train": 4}]
)
def test_toy_parameters_are_part_of_the_cache_entry(
    data, stub_toy, monkeypatch, change
):
    datasets.prepare(data)
    number = len(stub_toy)
    datasets.prepare(data)
    assert len(stub_toy) == number
    for key, value in change.items():
        if key == "version":
            monkeypatch.setattr(toy, "VERSION", value)
        elif key == "train":
            data.toy_examples.train = value
        else:
            data[key] = value
    datasets.prepare(data)
    assert len(stub_toy) > number


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("family", "swapped", "both, upsampled, blended, found 'swapped'"),
        ("toy_examples", {"train": -1}, "of 0 or more"),
        ("toy_examples", {"dev": 1}, "of 0 or more"),
        ("toy_examples", {"train": 0}, "of 0 or more"),
    ],
)
def test_toy_errors(data, field, value, message):
    data[field] = value
    with pytest.raises(UserError, match=message):
        datasets.prepare(data)


def test_a_toy_s_fingerprint_is_that_of_its_splits(data, stub_toy):
    before = datasets.prepare(data)
    data.toy_examples.test = 5
    after = datasets.prepare(data)
    used = ("train", "validation")
    assert after.fingerprint(used) == before.fingerprint(used)
    assert after.fingerprint(("test",)) != before.fingerprint(("test",))
    data.toy_seed = 1
    assert datasets.prepare(data).fingerprint(used) != before.fingerprint(used)


def test_the_real_toy(data):
    dataset = datasets.prepare(data)
    for record in dataset.source("train"):
        index = int(record["path"][-6:])
        if record["label"]:
            expected = toy.fake_image(record["generator"], 0, index)
        else:
            expected = toy.real_image(0, index)
        np.testing.assert_array_equal(images.decode(record["image"]), expected)
