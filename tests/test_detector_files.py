"""Files that are no detector, are damaged, or were written by somebody else."""

import hashlib
import os
import pickle
import stat

import exported
import jax
import jax.export
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import fdftnet_jax
from fdftnet_jax.detector import card as cards
from fdftnet_jax.detector import detector, file, network
from fdftnet_jax.errors import UserError

SIZE = 8
MODEL = {
    "kind": "fdftnet",
    "dtype": "float32",
    "backbone": "squeezenet",
    "num_blocks": 1,
    "num_stages": 1,
    "first_stride": 1,
}
CARD = {
    "name": "linear",
    "labels": ["real", "fake"],
    "model": MODEL,
    "preprocessing": {"view": "resize", "size": SIZE},
    "threshold": {"logit": 0.25},
    "calibration": {"temperature": 2.0, "shift": 0.5},
    # Of `program`: a hundredth of the means of `network.check_views`, counted apart.
    "check": [[0.0, 0.9725], [0.0, 1.4168]],
    "versions": {"fdftnet_jax": "0"},
}


def program(arrays, views):
    """Stands for a network: the mean of the pixels, times two weights."""
    return views.mean((1, 2, 3))[:, None] * arrays["params/w"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "small.safetensors"
    arrays = {"params/w": np.array([0, 0.01], np.float32)}
    stablehlo = exported.stablehlo(program, arrays, SIZE)
    file.write(path, {**arrays, detector.STABLEHLO: stablehlo}, CARD)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The place of a file that is not as it was."""
    return tmp_path_factory.mktemp("changed") / "detector.safetensors"


def refused(path, match, *, program=True):
    """One line for the user, without a look at the bytes."""
    with pytest.raises(UserError, match=match) as error:
        fdftnet_jax.load(path, program=program)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_what_is_written_is_read(written):
    arrays, card, digest = file.read(written)
    assert card == CARD
    content = written.read_bytes()
    blank = content.replace(digest.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == digest
    np.testing.assert_array_equal(arrays["params/w"], np.float32([0, 0.01]))
    # Any reader of safetensors opens it.
    assert safetensors.numpy.load_file(written).keys() == arrays.keys()
    found = fdftnet_jax.load(written, program=True)
    assert found.digest == digest
    z = found.logits(np.full((3, SIZE, SIZE, 3), 100, np.uint8))
    np.testing.assert_allclose(z, 1, atol=1e-6)
    np.testing.assert_allclose(found.probability(z), 1 / (1 + np.exp(-1)), atol=1e-6)


@pytest.mark.parametrize("lower", [None, -1, 0.25])
def test_a_second_threshold_is_read(lower, written, other):
    """Files from before there was one have none."""

    def change(_, card):
        if lower is not None:
            card["threshold"] = {**card["threshold"], "lower_logit": lower}

    exported.rewritten(written, other, change)
    found = fdftnet_jax.load(other, program=True)
    assert found.threshold == found.thresholds.upper == 0.25
    assert found.thresholds.lower == (0.25 if lower is None else lower)
    between = [] if lower != -1 else ["undecided"]
    verdicts = found.thresholds.verdicts([-1.01, *([0.0] if between else []), 0.25])
    assert verdicts.tolist() == ["real", *between, "fake"]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_byte_that_has_changed_is_noticed(written, other, data):
    content = bytearray(written.read_bytes())
    # Half of the draws in the header, a small part of the file.
    header = 8 + int.from_bytes(content[:8], "little")
    last = data.draw(st.sampled_from([header, len(content)])) - 1
    place = data.draw(st.integers(0, last))
    content[place] ^= data.draw(st.integers(1, 255))
    other.write_bytes(content)
    refused(other, "no detector|damaged|format")


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_part_of_a_file_is_noticed(written, other, data):
    content = written.read_bytes()
    other.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refused(other, "no detector|damaged")
    other.write_bytes(content + b"\0" * data.draw(st.integers(1, 9)))
    refused(other, "damaged")


class _Bomb:
    def __reduce__(self):
        return os._exit, (3,)


def test_files_of_other_kinds(tmp_path):
    foreign = tmp_path / "foreign"
    refused(foreign, "cannot read the detector .*No such file .*'toy'")
    contents = [
        pickle.dumps(_Bomb()),
        safetensors.numpy.save({"a": np.zeros(3)}),
        safetensors.numpy.save({"a": np.zeros(3)}, {"fdftnet_detector": "[" * 100_000}),
        safetensors.numpy.save({"a": np.zeros(3)}, {"fdftnet_detector": '{"card": 1}'}),
        (2**63).to_bytes(8, "little") + b"{}",
        b"",
    ]
    for content in contents:
        foreign.write_bytes(content)
        refused(foreign, "is no detector, or it is damaged")
    refused(tmp_path, "found no regular file")
    os.mkfifo(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    refused(tmp_path / "pipe", "found no regular file")


def test_another_version(written, other, monkeypatch):
    monkeypatch.setattr(file, "FORMAT_VERSION", 3)
    file.write(other, {}, CARD)
    monkeypatch.undo()
    refused(other, "of format 3, this version of fdftnet_jax reads 2")


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(_, card):
        for name in path:
            card[name] = dict(card[name])
            card = card[name]
        card[last] = value

    return change


def _drop(name):
    def change(arrays, card):
        (card if name in card else arrays).pop(name)

    return change


def _program_of(function, **options):
    """Replaces the program."""

    def change(arrays, _):
        views = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.uint8)
        weights = {"params/w": jax.ShapeDtypeStruct((2,), np.float32)}
        made = jax.export.export(jax.jit(function), **options)(weights, views)
        arrays[detector.STABLEHLO] = np.frombuffer(made.serialize(), np.uint8)

    return change


def _calls_outside(arrays, views):
    return jax.ffi.ffi_call("evil", jax.ShapeDtypeStruct((1, 2), np.float32))()


CHANGES = {
    "classes in another order": _set("labels", ["fake", "real"]),
    "no labels": _drop("labels"),
    "no program": _drop("stablehlo"),
    "no threshold": _set("threshold", None),
    "no check": _drop("check"),
    "no versions": _drop("versions"),
    "a check of another shape": _set("check", [[0.0, 0.0]]),
    "a check that is text": _set("check", [["a", "b"], ["c", "d"]]),
    "another type of number": _set("model", "dtype", "int8"),
    "a threshold that is text": _set("threshold", "logit", "0"),
    "a lower threshold that is text": _set("threshold", "lower_logit", "0"),
    "a lower threshold that is nothing": _set("threshold", "lower_logit", None),
    "a lower threshold above the upper one": _set("threshold", "lower_logit", 0.26),
    "a temperature of 0": _set("calibration", "temperature", 0),
    "a shift that is a list": _set("calibration", "shift", []),
    "a view of another kind": _set("preprocessing", "view", ["resize"]),
    "views of a huge size": _set("preprocessing", "size", 10**9),
    "views in a huge number": _set("preprocessing", "grid", 10**9),
    "preprocessing that is text": _set("preprocessing", "resize"),
    "another number of logits": _program_of(lambda w, v: v.mean((1, 2, 3))),
    "integers for logits": _program_of(lambda w, v: v.sum((1, 2))[:, :2]),
    "a call of a function outside": _program_of(
        _calls_outside,
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("evil")],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_somebody_rewrote(name, written, other):
    """Its digest is right."""
    exported.rewritten(written, other, CHANGES[name])
    refused(other, "does not hold a detector that works|expected preprocessing")


@pytest.mark.parametrize(
    "change",
    [
        _set("model", None),
        _set("model", "num_blocks", 10**9),
        _set("model", "num_stages", "3"),
        _set("model", "kind", {}),
        _set("model", "backbone", "os:abort"),
        _set("model", {}),
        lambda arrays, card: arrays.update({"params/w": np.zeros(2)}),
        lambda arrays, card: None,
    ],
)
def test_a_network_that_cannot_be_built(change, written, other):
    exported.rewritten(written, other, change)
    told = "does not hold a detector|is not part of the package|model.kind"
    refused(other, told, program=False)


def test_a_score_that_is_not_finite(written, other):
    def change(arrays, card):
        # Finite for the pictures that the file is checked with.
        arrays["params/w"] = np.array([0, 2e36], np.float32)
        w = arrays["params/w"].astype(np.float64)
        means = network.check_views(SIZE).mean((1, 2, 3))
        card["check"] = (means[:, None] * w).tolist()

    changed = exported.rewritten(written, other, change)
    found = fdftnet_jax.load(changed, program=True)
    with pytest.raises(UserError, match="gives a score that is not finite"):
        found.score([np.full((9, 9, 3), 255, np.uint8)])


def test_a_card_cannot_write_to_the_terminal():
    assert "\x1b" not in cards._plain("\x1b[2Jname\r\n")
