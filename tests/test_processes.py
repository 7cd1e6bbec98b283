"""Two processes of two devices each are one process, through the real commands."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest
import small_runs

from fdftnet_jax import files
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import calibration
from fdftnet_jax.run import Run
from fdftnet_jax.training import defaults, feed, processes

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parent


PRETRAIN = f"configs/pretrain.py:{small_runs.BACKBONE},toy"
FINETUNE = f"configs/finetune.py:{small_runs.BACKBONE},toy"


def start(devices, cache_dir, workdir, *flags, recipe=PRETRAIN, stopped_in=0):
    """Starts one process of a small run."""
    xla = os.environ["XLA_FLAGS"].replace("device_count=2", f"device_count={devices}")
    config = [f"--config.{k}={v}" for k, v in small_runs.small(cache_dir).items()]
    command = [HERE / "one_of_several.py", stopped_in, f"--workdir={workdir}"]
    command += [f"--config={recipe}"]
    return subprocess.Popen(
        [sys.executable, *map(str, command), *config, *flags],
        cwd=ROOT,
        env={
            **os.environ,
            "XLA_FLAGS": xla,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(cache_dir, workdir, *flags, recipe=PRETRAIN, stopped_in=0, of_second=()):
    """Starts both; the second may be sent a signal, or have flags of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = (f"--coordinator=localhost:{port}", "--num_processes=2", *flags)
    return [
        start(2, cache_dir, workdir, *flags, "--process_id=0", recipe=recipe),
        start(
            *(2, cache_dir, workdir, *flags, "--process_id=1", *of_second),
            recipe=recipe,
            stopped_in=stopped_in,
        ),
    ]


def finish(started, code):
    """Waits; returns the batches of image indices and the messages of each process."""
    found = []
    with contextlib.ExitStack() as stack:
        for process in started:
            stack.enter_context(process)  # Closes its pipes.
            stack.callback(process.kill)
        for process in started:
            stdout, stderr = process.communicate(timeout=200)
            assert process.returncode == code, stderr
            # The library of collectives has lines of its own, whose ends come later.
            rows = re.findall(r"batch((?: \d+)+)", stdout)
            said = [s for s in stderr.splitlines() if not s.startswith("[Gloo]")]
            found.append(([row.split() for row in rows], said))
    return found


@pytest.fixture
def alone(cache_dir, tmp_path, monkeypatch):
    """A run of this process: its workdir, and the image indices of its batches."""
    take, batches = feed.Feed.take, []

    def noted(self, number):
        indices, batch = take(self, number)
        batches.append([str(index) for index in indices.ravel()])
        return indices, batch

    with monkeypatch.context() as patch:
        patch.setattr(feed.Feed, "take", noted)
        workdir = small_runs.run(small_runs.config(cache_dir), tmp_path / "one")
    calibration.for_run(Run(workdir))
    return workdir, batches


def test_two_processes_are_one(alone, tmp_path):
    """Also where a signal reaches one of them, and both go on later."""
    one, batches = alone
    # Both prepare data of their own: the second of two waits for the first.
    two = start_two(tmp_path / "cache", tmp_path / "two", stopped_in=2)
    # All know of the signal one step later, and stop after the step that they are in.
    [(first, said), (second, also_said)] = finish(two, 143)
    assert said[-1] == also_said[-1]
    assert said[-1].startswith("stopped by SIGTERM after step 3, which is saved")
    assert len(also_said) == 2  # And that it is saved first.
    with Checkpoints(tmp_path / "two") as checkpoints:
        assert checkpoints.latest == 3

    two = start_two(tmp_path / "cache", tmp_path / "two")
    [(more, said), (second_more, nothing)] = finish(two, 0)
    assert any("resuming" in line for line in said)
    assert nothing == []
    # Each reads its half of every batch.
    assert [len(rows) for rows in first + more] == [4] * 12
    halves = zip(first + more, second + second_more, strict=True)
    assert [mine + theirs for mine, theirs in halves] == batches

    found, expected = (
        [list(row.values()) for row in small_runs.history(workdir)]
        for workdir in (tmp_path / "two", one)
    )
    assert len(found) == 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    arrays = [small_runs.arrays(workdir) for workdir in (tmp_path / "two", one)]
    chex.assert_trees_all_close(*arrays, rtol=1e-5, atol=1e-5)
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 2
    # All score validation, one tells of it and writes.
    assert sum(line.startswith("calibrated on 18") for line in said) == 1
    found, expected = (
        json.loads((workdir / "calibration.json").read_text())
        for workdir in (tmp_path / "two", one)
    )
    assert found["checkpoint_step"] == expected["checkpoint_step"]
    assert found["threshold_logit"] == pytest.approx(
        expected["threshold_logit"], abs=1e-4
    )
    # A run goes on with another number of devices: it is finished here, too.
    small_runs.run(small_runs.config(tmp_path / "cache"), tmp_path / "two")


def test_both_know_what_the_first_process_fits(cache_dir, pretrained, tmp_path):
    """A regression on features that it computes itself; both validate with it."""
    changes = defaults.probe(small_runs.BACKBONE) | {
        "data.shots": 10,
        "data.replay": 0,
    }
    config = small_runs.config(cache_dir, pretrained, **changes)
    one = small_runs.run(config, tmp_path / "one")
    flags = [f"--config.{k}={v}" for k, v in changes.items()]
    flags += [f"--config.init_from={pretrained}"]
    two = start_two(tmp_path / "cache", tmp_path / "two", *flags, recipe=FINETUNE)
    [(_, said), (_, nothing)] = finish(two, 0)
    assert any(line.startswith("logistic regression on 48 features") for line in said)
    assert nothing == []
    [found], [expected] = (
        small_runs.history(workdir) for workdir in (tmp_path / "two", one)
    )
    assert found == pytest.approx(expected, rel=1e-4)
    layers = [
        Run(workdir).variables["params"]["classifier"]
        for workdir in (tmp_path / "two", one)
    ]
    assert np.abs(layers[1]["kernel"]).max() > 0.01
    chex.assert_trees_all_close(*layers, rtol=1e-3, atol=1e-4)


def test_processes_that_differ_are_refused(cache_dir, tmp_path):
    two = start_two(cache_dir, tmp_path / "run", of_second=["--config.seed=5"])
    [(_, said), (_, also_said)] = finish(two, 2)
    assert said == also_said
    assert said[0].startswith("error: the processes differ in their configs: give")
    assert not (tmp_path / "run").exists()


def test_what_stops_the_first_stops_the_second(cache_dir, tmp_path):
    with files.lock(tmp_path / ".lock", blocking=False):
        [(_, said), (_, also_said)] = finish(start_two(cache_dir, tmp_path), 2)
    assert f"process {os.getpid()} is training in {tmp_path}" in said[-1]
    assert also_said == [
        "error: process 0 could not begin in the workdir: its own message says why"
    ]


def test_processes_that_cannot_meet(cache_dir, tmp_path):
    alone = start(2, cache_dir, tmp_path, "--coordinator=localhost:1")
    [(_, said)] = finish([alone], 2)
    assert len(said) == 1
    assert "Number of processes must be defined" in said[0]
    assert "--process_id=0 to N-1" in said[0]


# In a process alone.


def test_alone_nothing_is_agreed_on():
    agreement = processes.Agreement()
    assert [agreement(number) for number in (0, 15, 0)] == [0, 15, 0]
    assert processes.by_primary(lambda: 3, "count") == 3
    assert processes.primary_first(lambda: 3, "count") == 3
    assert processes.of_primary(lambda: 3, 0, "count") == 3
    processes.check_same({"anything": object()})
    np.testing.assert_array_equal(processes.gather(np.arange(3)), [0, 1, 2])
    with pytest.raises(UserError, match=r"^as it is$"):
        processes.by_primary(fail, "fail")


def fail():
    raise UserError("as it is")
