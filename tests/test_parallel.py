"""Work in threads: its order, how much is in hand, and into what a batch is cut."""

import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import fdftnet_jax
from fdftnet_jax import parallel


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ahead", [0, 5])
def test_results_in_order_and_no_more_than_so_many_at_once(threads, ahead):
    rng = np.random.default_rng(0)
    waits = rng.uniform(0, 0.003, 60)
    taken, given, most = 0, 0, 0

    def things():
        nonlocal given, most
        for number in range(60):
            given += 1
            most = max(most, given - taken)
            yield number

    def work(number):
        time.sleep(waits[number])
        return number

    found = []
    for number in parallel.in_order(work, things(), threads=threads, ahead=ahead):
        taken += 1
        found.append(number)
    assert found == list(range(60))
    assert most <= ahead + 2


def test_work_that_is_not_wanted_any_more_is_not_begun():
    begun = []
    gate = threading.Event()

    def work(number):
        begun.append(number)
        if number:
            gate.wait(10)
        return number

    found = parallel.in_order(work, iter(range(100)), threads=1, ahead=9)
    assert next(found) == 0
    found.close()
    gate.set()
    assert len(begun) <= 2


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
def test_parts_of_a_batch(monkeypatch, cores):
    monkeypatch.setattr(parallel, "cores", lambda: cores)
    for rows in range(1, 300):
        number = parallel.parts(rows)
        assert rows % number == 0 and number & (number - 1) == 0
        assert number == 1 or (number <= cores and rows // number >= 8)
    whole = {1: 1, 2: 2, 3: 2, 16: 8}
    assert parallel.parts(64) == whole[cores]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert parallel.parts(64) == 1


def test_tasks_at_once_meet_each_other():
    if parallel.cores() < 2:
        pytest.skip("one core: nothing is done at once")
    both = threading.Barrier(2, timeout=10)

    def work(number):
        both.wait()
        return 10 * number

    assert parallel.at_once(work, [3, 1]) == [30, 10]
    assert parallel.at_once(lambda _: threading.get_ident(), [0]) == [
        threading.get_ident()
    ]


@pytest.mark.parametrize(("devices", "most"), [(1, 3), (2, 1)])
def test_batches_are_scored_in_order_after_a_first_that_compiles(
    monkeypatch, devices, most
):
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    lock, running, ended, most_running = threading.Lock(), 0, [], 0

    def score(batch):
        nonlocal running, most_running
        with lock:
            running += 1
            most_running = max(most_running, running)
            assert batch == 0 or 0 in ended
        time.sleep(0.02)
        with lock:
            running -= 1
            ended.append(batch)
        return -batch

    found = parallel.scored(score, str, iter(range(12)))
    assert list(found) == [str(-i) for i in range(12)]
    assert most_running == most


def test_no_batches():
    assert list(parallel.scored(abs, abs, [])) == []


def test_what_a_batch_raises_is_raised():
    def score(batch):
        if batch == 2:
            raise ValueError("of batch 2")
        return batch

    found = parallel.scored(score, str, iter(range(9)))
    assert next(found) == "0"
    with pytest.raises(ValueError, match="of batch 2"):
        list(found)


def test_a_detector_scores_the_same_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (50, 64, 64, 3), np.uint8)
    found = {}
    for cores in (1, 4):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        found[cores] = fdftnet_jax.load("toy").logits(views)
    assert np.ptp(found[1]) > 0.1
    np.testing.assert_allclose(found[4], found[1], rtol=1e-4, atol=1e-4)


def test_processes_that_only_read_do_not_load_jax():
    """It would take a hundred megabytes in each of them."""
    code = "import sys, fdftnet_jax.scale.apart; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
