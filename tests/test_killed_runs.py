"""Runs killed by SIGKILL, at random moments of every phase, end as if undisturbed."""

import random
import signal
import time

import pytest
import small_runs

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
    finish(cache_dir, tmp_path / "undisturbed", 2)
    for times, delay in [(2, 0.02), (1, 0.1)]:
        assert kill(cache_dir, tmp_path / "killed", 2, "save", times, delay)
    finish(cache_dir, tmp_path / "killed", 2)
    small_runs.assert_same(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.slow
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
