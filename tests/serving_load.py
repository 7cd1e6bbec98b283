"""Loads a server of `fdftnet serve` in a process of its own, and prints what it took.

    python tests/serving_load.py [--requests 200] [--mutated 10000]

Each part ends with an error where an answer is lost or wrong, or the server crashes.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image

from fdftnet_jax.data import toy

# Requests at a time.
CLIENTS = 16
# Files that a request may have.
_TOGETHER = 32


class Process:
    """A server of the toy detector, with its uploads below `folder`."""

    def __init__(self, folder):
        self._folder = Path(folder)
        self._port = 0
        self.peak = 0

    def start(self):
        command = [sys.executable, "-m", "fdftnet_jax.cli", "serve", "toy", "--no-open"]
        self._process = subprocess.Popen(
            [*command, "--port", str(self._port)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(self._folder)},
        )
        said = ""
        while "http" not in said:
            line = self._process.stderr.readline()
            assert line, said
            said += line
        self._port = int(re.search(r"127\.0\.0\.1:(\d+)", said)[1])
        # What it says from now on; a pipe that nobody reads would stop it.
        self.said = []
        pipe = self._process.stderr
        threading.Thread(target=lambda: self.said.extend(pipe), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self._port}"

    def stop(self):
        """Ends it as a user does; remembers its peak memory, in MiB."""
        self.peak = max(self.peak, self.memory("VmHWM"))
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 128 + signal.SIGTERM, self.said

    def memory(self, field):
        """A field of its memory, in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+)", status)[1]) // 1024

    @property
    def uploads(self):
        """What is left of uploads."""
        return [p for p in self._folder.glob("fdftnet-serve-*/*") if p.name != "lock"]


@contextlib.contextmanager
def process():
    """A server that is started, and ended at the end."""
    with tempfile.TemporaryDirectory() as folder:
        server = Process(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
        assert not server.uploads
        assert not any("Traceback" in line for line in server.said), server.said


def write_pictures(folder, count, largest):
    """Writes `count` pictures of 0 to about `largest` bytes, 5 % of them damaged."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(2000, largest, count - 1)
    (folder / "000.png").write_bytes(b"")
    for number, size in enumerate(sizes, 1):
        side = max(64, round((size / 3) ** 0.5))
        drawn = toy.real_image(7, number)
        if number % 2:
            drawn = toy.fake_image(toy.FAMILIES[number % len(toy.FAMILIES)], 7, number)
        pixels = cv2.resize(drawn, (side, side)).astype(np.int16)
        # (Noise is what a file cannot make smaller.)
        noise = rng.integers(-100, 101, pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        suffix = "jpg" if number % 3 == 0 else "png"
        path = folder / f"{number:03}.{suffix}"
        Image.fromarray(pixels).save(path, compress_level=1, quality=95)
        if number % 20 == 7:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return sorted(folder.iterdir())


def expected_rows(paths):
    """What `predict` says of each file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        command = [sys.executable, "-m", "fdftnet_jax.cli", "predict", "toy"]
        names = [str(path) for path in paths]
        subprocess.run(
            [*command, *names, "--json", str(out)], check=True, capture_output=True
        )
        rows = json.loads(out.read_text())["results"]
    assert [row["path"] for row in rows] == names
    return {Path(row["path"]).name: row for row in rows}


@dataclasses.dataclass
class Loaded:
    """What a load took."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    retries: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )


def load(address, paths, expected, requests, *, clients=CLIENTS, meanwhile=None):
    """Has pictures judged, each by a request, `clients` at a time; checks all answers.

    Who is sent away, or loses the server, comes again after a moment.
    """
    loaded = Loaded()

    def ask(number):
        path = paths[number * 7 % len(paths)]
        data = path.read_bytes()
        start = time.monotonic()
        while True:
            assert time.monotonic() < start + 300, "no answer"
            try:
                with httpx.Client(timeout=120, trust_env=False) as client:
                    answer = client.post(
                        f"{address}/v1/predict", files={"files": (path.name, data)}
                    )
            except httpx.TransportError as error:
                loaded.retries[type(error).__name__] += 1
                time.sleep(0.5)
                continue
            if answer.status_code == 503:
                loaded.retries[503] += 1
                time.sleep(0.5)
                continue
            assert answer.status_code == 200, answer.text
            break
        loaded.seconds.append(time.monotonic() - start)
        (row,) = answer.json()["results"]
        same(row, expected[path.name], path.name)

    with futures.ThreadPoolExecutor(clients) as pool:
        work = [pool.submit(ask, number) for number in range(requests)]
        if meanwhile is not None:
            futures.wait(work[: requests // 3])
            meanwhile()
        for each in work:
            each.result()
    assert len(loaded.seconds) == requests
    return loaded


def same(row, expected, name):
    """Numbers are equal to about five digits, all else is equal."""
    for field, value in row.items():
        other = name if field == "path" else expected[field]
        if isinstance(value, float):
            assert value == pytest.approx(other, rel=1e-4, abs=1e-6), (name, field)
        else:
            assert value == other, (name, field)


def hang_up(server, data, times):
    """Leaves in the middle of a request, and before its answer."""
    host, port = server.address.removeprefix("http://").split(":")
    head = b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = b"--x\r\n" + head + data + b"\r\n--x--\r\n"
    request = (
        f"POST /v1/predict HTTP/1.1\r\nHost: {host}:{port}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    for number in range(times):
        part = request if number % 2 else request[: len(request) // 2]
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(part)
    end = time.monotonic() + 60
    while server.uploads:
        assert time.monotonic() < end, "uploads are left"
        time.sleep(0.1)
    assert httpx.get(f"{server.address}/readyz", trust_env=False).status_code == 200


def mutants(count, seed=0):
    """Yields (name, bytes) of pictures, a few of them videos, with random damage."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(toy.real_image(7, 0))
    whole = []
    for kind in ("png", "jpeg", "gif", "webp", "bmp", "tiff", "jpeg2000", "ppm", "tga"):
        file = io.BytesIO()
        picture.save(file, kind)
        whole.append((kind, file.getvalue()))
    for number in range(count):
        kind, data = whole[number % len(whole)]
        found = bytearray(data)
        for _ in range(rng.integers(1, 9)):
            how, place = rng.integers(4), int(rng.integers(len(found) or 1))
            if how == 0:
                found[place : place + 1] = rng.bytes(1)
            elif how == 1:
                del found[place : place + int(rng.integers(1, 40))]
            elif how == 2:
                found[place:place] = rng.bytes(int(rng.integers(1, 40)))
            else:
                # Headers are short, and matter most.
                found[place % 64 : place % 64 + 4] = rng.bytes(4)
        yield f"{number}.{kind}", bytes(found)


def post_mutants(address, count):
    """Posts damaged files; each has a verdict. Counts the verdicts and reasons."""
    counts = collections.Counter()
    files = list(mutants(count))
    parts = [files[i : i + _TOGETHER] for i in range(0, count, _TOGETHER)]

    def ask(part):
        sent = [("files", each) for each in part]
        answer = httpx.post(
            f"{address}/v1/predict", files=sent, timeout=300, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        rows = [row for row in answer.json()["results"] if row["face"] is None]
        assert [row["path"] for row in rows] == [name for name, _ in part]
        return rows

    # (More of them would be too many files for the queue.)
    with futures.ThreadPoolExecutor(2) as pool:
        for rows in pool.map(ask, parts):
            for row in rows:
                unexpected = row["reason"].startswith("unexpected error")
                counts["unexpected" if unexpected else row["verdict"]] += 1
    assert sum(counts.values()) == count
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--largest", type=int, default=20 * 2**20)
    parser.add_argument("--mutated", type=int, default=10000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), 41, options.largest)
        sizes = [path.stat().st_size for path in paths]
        print(f"{len(paths)} pictures of {min(sizes)} to {max(sizes):,} bytes")
        expected = expected_rows(paths)
        with process() as server:
            before = server.memory("VmRSS")
            start = time.monotonic()
            loaded = load(server.address, paths, expected, options.requests)
            _say_loaded("load", loaded, time.monotonic() - start)
            memory = server.memory("VmHWM")
            print(f"memory: {before} MiB before, at most {memory} MiB")

            start = time.monotonic()
            hang_up(server, max(paths, key=os.path.getsize).read_bytes(), 20)
            print(
                f"20 clients hung up: nothing left {time.monotonic() - start:.1f} s on"
            )

            start = time.monotonic()

            def restart():
                server.stop()
                server.start()

            loaded = load(
                *(server.address, paths, expected, options.requests),
                meanwhile=restart,
            )
            _say_loaded("stopped and started", loaded, time.monotonic() - start)

            start = time.monotonic()
            counts = post_mutants(server.address, options.mutated)
            seconds = time.monotonic() - start
            memory = server.memory("VmHWM")
            print(f"{options.mutated} mutants: {dict(counts)}, {seconds:.0f} s")
            print(f"memory: at most {memory} MiB")


def _say_loaded(what, loaded, seconds):
    taken = np.percentile(loaded.seconds, [50, 95, 100])
    retries = dict(loaded.retries) or "none"
    print(
        f"{what}: {len(loaded.seconds)} requests, {CLIENTS} at a time, none lost or "
        f"wrong, in {seconds:.1f} s; a request took {taken[0]:.2f} s (median), "
        f"{taken[1]:.2f} s (95 %), {taken[2]:.2f} s (most); tried again: {retries}"
    )


if __name__ == "__main__":
    main()
