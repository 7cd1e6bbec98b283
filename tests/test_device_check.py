"""The check of an accelerator: a part or a peer that fails is a row of its table."""

import shlex
import subprocess
import sys
import time

import pytest

from experiments import device_check

LATER = time.monotonic() + 3600


def test_rows_of_a_part_as_they_are_without_a_failure():
    rows = [("ops", "a", "1"), ("ops", "b", "2")]
    assert list(device_check._until(LATER, "ops", iter(rows))) == rows


def test_a_failure_is_the_last_row_of_its_part():
    def rows():
        yield "ops", "a", "1"
        raise ValueError("no such layer\nand more")

    first, last = device_check._until(LATER, "ops", rows())
    assert first == ("ops", "a", "1")
    assert last == ("ops", "failed", "ValueError: no such layer")


def test_no_row_begins_after_the_minutes():
    begun = []

    def rows():
        begun.append(True)
        yield "ops", "a", "1"

    (row,) = device_check._until(time.monotonic() - 1, "ops", rows())
    assert not begun and "minutes are over" in row[2]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print('warming up'); print(1234.5)", "1,234 images/s"),
        ("print('{\"images_per_second\": 99.6}')", "100 images/s"),
        ("print('fast')", "failed: it printed no number"),
        ("print('{}')", "failed: it printed no number"),
        ("raise SystemExit('no GPU')", "failed: no GPU"),
    ],
)
def test_what_a_peer_printed_last_is_its_rate(program, expected):
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
    assert device_check._peer(command) == expected


def test_a_peer_that_is_not_there():
    assert "no-such-program" in device_check._peer("no-such-program --fast")


@pytest.mark.long
def test_the_rehearsal_fails_nowhere():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.device_check", "--small"],
        capture_output=True,
        text=True,
        check=True,
        timeout=1200,
    )
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert not [line for line in table if "fail" in line or "minutes" in line]
    parts = {line.split(" | ")[0].strip("| ") for line in table[1:]}
    assert parts == {
        *("agreement", "learning", "feeding", "ops", "throughput", "memory"),
    }
