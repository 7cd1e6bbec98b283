"""Signals and kills in the middle of a run, and two processes in one workdir."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import small_runs

from fdftnet_jax import files
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.errors import Interrupted, UserError
from fdftnet_jax.training import loop, steps
from fdftnet_jax.training.interruption import Interruption, StopRequestedError

pytestmark = pytest.mark.slow


def signal_in(monkeypatch, name, call):
    """Sends SIGTERM to this process in the `call`-th call of a pmapped step."""
    pmap_steps, calls = steps.pmap_steps, []

    def watched(task):
        functions = dict(zip(("train", "evaluate"), pmap_steps(task), strict=True))
        step = functions[name]

        def signalled(*arguments):
            calls.append(1)
            if len(calls) == call:
                signal.raise_signal(signal.SIGTERM)
            return step(*arguments)

        functions[name] = signalled
        return functions["train"], functions["evaluate"]

    monkeypatch.setattr(steps, "pmap_steps", watched)


# An epoch of the small run has 4 steps and 3 batches of validation.
@pytest.mark.parametrize(
    ("name", "call", "saved"),
    [("train", 6, 6), ("evaluate", 1, 4), ("evaluate", 5, 8)],
)
def test_a_signal_saves_and_the_run_goes_on_as_if_undisturbed(
    name, call, saved, pretrained, cache_dir, tmp_path, monkeypatch, capsys
):
    config = small_runs.config(cache_dir)
    with monkeypatch.context() as patch:
        signal_in(patch, name, call)
        with pytest.raises(Interrupted, match=f"SIGTERM after step {saved}.*same com"):
            small_runs.run(config, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == saved
        assert checkpoints.best == (None if saved <= 4 else 4)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    small_runs.run(config, tmp_path)
    assert f"resuming {tmp_path} after epoch {(saved - 1) // 4}" in (
        capsys.readouterr().err
    )
    small_runs.assert_same(tmp_path, pretrained)


def test_a_kill_while_a_checkpoint_is_replaced(
    pretrained, cache_dir, tmp_path, monkeypatch
):
    """The one saved in the validation after step 8 was set aside for the epoch's."""
    config = small_runs.config(cache_dir)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signal_in(patch, "evaluate", 5)
        small_runs.run(config, tmp_path)
    (tmp_path / "checkpoints" / "8").rename(tmp_path / "checkpoints" / "replaced-8")
    small_runs.run(config, tmp_path)
    small_runs.assert_same(tmp_path, pretrained)


def test_signals_at_every_step_end_in_the_undisturbed_run(
    pretrained, cache_dir, tmp_path, monkeypatch
):
    """Also where a process is stopped before it has made a step of its own."""
    config = small_runs.config(cache_dir)
    for name in ["train", "evaluate"] * 2:
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            signal_in(patch, name, 1)
            small_runs.run(config, tmp_path)
    small_runs.run(config, tmp_path)
    small_runs.assert_same(tmp_path, pretrained)


def test_the_second_signal_quits_at_once(request):
    # A shell starts commands in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with (
        Interruption() as interruption,
        pytest.raises(Interrupted, match="last checkpoint") as caught,
    ):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(StopRequestedError):
            list(interruption.checked([1]))
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_another_thread_than_the_main_one_trains_without_handlers():
    entered = []

    def enter():
        with Interruption() as interruption:
            entered.append(interruption.signal)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [None]


@pytest.mark.parametrize(
    ("number", "code", "phase", "message"),
    [
        (signal.SIGTERM, 143, "prepare", "begins again"),
        (signal.SIGINT, 130, "train", "goes on from there"),
    ],
)
def test_a_signalled_command_says_how_to_go_on(
    number, code, phase, message, tmp_path, cache_dir
):
    """In a step (saved there) and during the preparation before it."""
    process = small_runs.start_marked(cache_dir, tmp_path / "run")
    small_runs.wait_for(process, phase)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert message in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert any((tmp_path / "run").glob("checkpoints/[0-9]*")) == (phase == "train")


# Kills.


# Phase, and the longest delay after it begins, in seconds.
PHASES = {
    "start": 2.0,
    "prepare": 0.5,
    "train": 0.02,
    "evaluate": 0.02,
    "save": 0.3,
}


def finish(cache_dir, workdir, devices):
    process = small_runs.start_marked(cache_dir, workdir, devices)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout.startswith(f"start on {devices}")


def kill(cache_dir, workdir, devices, phase, times, delay):
    """Starts a run and kills it; False where it ended before."""
    process = small_runs.start_marked(cache_dir, workdir, devices)
    reached = small_runs.wait_for(process, phase, times)
    if reached:
        time.sleep(delay)
    process.kill()
    process.communicate()
    return reached and process.returncode == -signal.SIGKILL


def test_killed_while_saving(cache_dir, tmp_path):
    for times, delay in [(2, 0.02), (1, 0.1)]:
        assert kill(cache_dir, tmp_path / "killed", 2, "save", times, delay)
    config = small_runs.marked_config(cache_dir)
    small_runs.run(config, tmp_path / "undisturbed")
    small_runs.run(config, tmp_path / "killed")
    small_runs.assert_same(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_at_random(devices, tmp_path):
    """At least 12 kills for either number of devices, the cold start's data among them.

    A run that survives its kills is compared, and the next one begins anew.
    """
    chance = random.Random(devices)
    undisturbed = tmp_path / "undisturbed"
    finish(tmp_path / "undisturbed_cache", undisturbed, devices)
    kills, runs = dict.fromkeys(PHASES, 0), 0
    while min(kills.values()) < 2 or sum(kills.values()) < 12:
        workdir, cache = tmp_path / str(runs), tmp_path / f"cache{runs}"
        runs += 1
        for phase in chance.sample(list(PHASES), len(PHASES)):
            times = 1 if phase in ("start", "prepare") else chance.randint(1, 3)
            delay = chance.uniform(0, PHASES[phase])
            kills[phase] += kill(cache, workdir, devices, phase, times, delay)
        finish(cache, workdir, devices)
        small_runs.assert_same(workdir, undisturbed)
    print(f"{devices} device(s): {sum(kills.values())} kills in {runs} runs, {kills}")


# Locks.


def test_a_second_process_is_refused_while_the_first_lives(cache_dir, tmp_path):
    process = small_runs.start_marked(cache_dir, tmp_path)
    try:
        small_runs.wait_for(process, "train")
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(UserError, match=f"process {process.pid} is training in"):
            small_runs.run(small_runs.config(cache_dir), tmp_path)
    finally:
        process.kill()
        process.communicate()
    # A killed one holds nothing.
    config = small_runs.config(cache_dir, epochs=1)
    (tmp_path / "config.json").unlink()
    small_runs.run(config, tmp_path)


def test_a_lock_waits_for_its_holder(tmp_path):
    code = (
        "import sys, time; from fdftnet_jax import files\n"
        "with files.lock(sys.argv[1], blocking=True):\n"
        "    print('held', flush=True); time.sleep(0.5); print('done', flush=True)"
    )
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=str(process.pid)):
            files.lock(path, blocking=False).__enter__()
        with files.lock(path, blocking=True):
            assert process.stdout.readline() == "done\n"


def test_a_mistake_leaves_no_workdir(cache_dir, tmp_path):
    with pytest.raises(UserError):
        loop.train_and_evaluate(
            small_runs.config(cache_dir, **{"trainable": "head"}), str(tmp_path / "run")
        )
    assert not (tmp_path / "run").exists()
