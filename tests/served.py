"""A server of `fdftnet serve` in a thread of the tests."""

import contextlib
import dataclasses
import threading
import time

import httpx

from fdftnet_jax.serving import app, engine, guard, run, uploads

TOKEN = "a token of sixteen characters and more"


@dataclasses.dataclass
class Served:
    """A server that answers at `address`; `client` asks it."""

    address: str
    server: app.Server
    client: httpx.Client

    @property
    def uploads(self):
        """What is left of uploads."""
        return [p for p in self.server.store.folder.iterdir() if p.name != "lock"]


@contextlib.contextmanager
def serving(detector, *, token=None, limits=None, root=None, kept=None, **options):
    """Serves a detector on a port that is free."""
    server = app.Server(
        engine.Engine(detector, **options),
        uploads.Store(limits),
        guard.Guard("127.0.0.1", token),
        "toy",
        root=root,
        corrections=kept,
    )
    with contextlib.closing(server), run.listen("127.0.0.1", 0) as listening:
        http = run.http_server(server)
        thread = threading.Thread(target=http.run, args=([listening],))
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
                yield Served(address, server, client)
        finally:
            http.should_exit = True
            thread.join()


def wait_until(condition, seconds=10):
    """Waits for something; an error where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
