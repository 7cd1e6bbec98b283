"""The same numbers on any number of devices, however the steps are called and fed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import small_runs

from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import pipeline
from fdftnet_jax.errors import Interrupted
from fdftnet_jax.training import feed, loop, steps

HERE = Path(__file__).parent


def batches_of(number, size=8):
    """Batches as the pipeline yields them, without end."""
    index = 0
    while True:
        found = small_runs.batch(size, seed=index)
        yield found | {"index": np.arange(index, index + size, dtype=np.int32)}
        index += size


# Devices.


def compare_one_and_all_devices():
    """Batch statistics, dropout and augmentation are those of the global batch."""
    assert jax.device_count() == 8
    # A small rate, so that steps do not blow up the rounding of different sums.
    task, state = small_runs.task(small_runs.model_config(), "all", rate=0.002)
    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        train, _ = steps.pmap_steps(task, devices)
        replicated, seen = steps.replicate(state, devices), []
        for index in range(4):
            batch = steps.shard(small_runs.batch(16, seed=index), devices)
            replicated, metrics = train(replicated, batch)
            if index in (0, 3):
                seen.append(steps.unreplicate((replicated, metrics)))
        found.append(seen)
    for one, many in zip(*found, strict=True):
        chex.assert_trees_all_close(one, many, rtol=1e-5, atol=1e-5)
    assert found[0][1][0].step == 4
    # The steps have made a difference that is worth comparing.
    for part in ("params", "batch_stats"):
        after, before = getattr(found[0][1][0], part), getattr(state, part)
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(after, before, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_one_device_and_eight_see_the_same():
    flags = os.environ["XLA_FLAGS"].replace("device_count=2", "device_count=8")
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "import test_devices; test_devices.compare_one_and_all_devices()",
        ],
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


# Steps of a call.


def test_steps_of_one_call_are_those_of_several():
    """To rounding: the compiler fuses the body of a loop in another way."""
    model = small_runs.model_config("classifier")
    task, start = small_runs.task(model, "all")
    train, _ = steps.pmap_steps(task)
    one_by_one = feed.Feed(batches_of(8))
    state, found = steps.replicate(start), []
    for _ in range(4):
        state, metrics = train(state, one_by_one.take(1)[1])
        found.append(steps.unreplicate(metrics))
    indices, stacked = feed.Feed(batches_of(8)).take(4)
    np.testing.assert_array_equal(indices, np.arange(32).reshape(4, 8))
    at_once, metrics = train(steps.replicate(start), stacked)
    expected = jax.tree.map(lambda *values: np.stack(values), *found)
    chex.assert_trees_all_close(steps.unreplicate(metrics), expected, rtol=1e-6)
    chex.assert_trees_all_close(
        steps.unreplicate(at_once), steps.unreplicate(state), rtol=1e-6, atol=1e-6
    )


@pytest.fixture(scope="module")
def called_for_three(cache_dir, tmp_path_factory):
    """A run of three steps a call; an epoch has 4: 3 + 1."""
    workdir = tmp_path_factory.mktemp("three")
    return small_runs.run(small_runs.config(cache_dir, steps_per_call=3), workdir)


@pytest.mark.slow
def test_a_run_of_several_steps_a_call(called_for_three, pretrained):
    found, expected = (
        [list(row.values()) for row in small_runs.history(workdir)]
        for workdir in (called_for_three, pretrained)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    arrays = [small_runs.arrays(w) for w in (called_for_three, pretrained)]
    chex.assert_trees_all_close(*arrays, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_signal_stops_between_two_calls(
    called_for_three, cache_dir, tmp_path, monkeypatch
):
    config = small_runs.config(cache_dir, steps_per_call=3)
    take, calls = feed.Feed.take, []

    def signalled(self, number):
        calls.append(number)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return take(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(feed.Feed, "take", signalled)
        with pytest.raises(Interrupted, match="after step 7"):
            small_runs.run(config, tmp_path)
    assert calls == [3, 1, 3]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 7
    small_runs.run(config, tmp_path)
    small_runs.assert_same(tmp_path, called_for_three)


# What the devices keep.


@pytest.mark.slow
def test_a_run_that_sends_each_batch_is_the_same(pretrained, cache_dir, tmp_path):
    config = small_runs.config(cache_dir, **{"data.device_megabytes": 0})
    small_runs.run(config, tmp_path)
    small_runs.assert_same(tmp_path, pretrained)


def source_of(number):
    """A source in which item i has index 100 + i."""
    batch = small_runs.batch(number)
    rows = zip(batch["image"], batch["label"], strict=True)
    return [
        {"image": image, "label": label, "index": np.int32(100 + i)}
        for i, (image, label) in enumerate(rows)
    ]


@pytest.mark.parametrize("number", [1, 3])
def test_kept_views_are_those_that_would_be_sent(number):
    source = source_of(20)
    sent = feed.Feed(pipeline.train_batches([(source, 1.0)], 8, seed=3, threads=0))
    rows, views = feed.resident(source, threads=2)
    assert len(rows) == 20
    assert "image" not in rows[0]
    kept = feed.Feed(pipeline.train_batches([(rows, 1.0)], 8, 3, threads=0), views)
    for _ in range(3):
        indices, expected = sent.take(number)
        found_indices, found = kept.take(number)
        np.testing.assert_array_equal(indices, found_indices)
        assert indices.min() >= 100
        chex.assert_trees_all_equal(jax.device_get(found), expected)


@pytest.mark.parametrize(("megabytes", "kept"), [(1, True), (0, False)])
def test_what_fits_is_kept(megabytes, kept, cache_dir, tmp_path, monkeypatch):
    sources = []

    class Stop(Exception):  # noqa: N818
        pass

    def train_batches(members, *_, **__):
        sources.append(members[0][0])
        raise Stop

    monkeypatch.setattr(pipeline, "train_batches", train_batches)
    config = small_runs.config(cache_dir, **{"data.device_megabytes": megabytes})
    with pytest.raises(Stop):
        loop.train_and_evaluate(config, str(tmp_path))
    assert ("image" in sources[0][0]) != kept


# Waiting.


def test_the_time_spent_waiting_is_measured():
    def slow():
        for batch in batches_of(8):
            time.sleep(0.05)
            yield batch

    fed = feed.Feed(slow())
    fed.take(2)
    assert 0.1 <= fed.waited < 0.3


@pytest.mark.parametrize(("share", "told"), [(0.2, True), (0.02, False)])
def test_a_notable_wait_is_told(share, told):
    row = {
        "epoch": 1,
        "train_loss": 0.5,
        "validation_loss": 0.5,
        "validation_accuracy": 0.5,
        "images_per_second": 100.0,
        "input_wait_share": share,
    }
    line = loop._line(row, 3, 60.0, best=True)
    assert ("waiting for images 20% of the time" in line) == told
    assert line.endswith("at most 1.0 min left  best")
