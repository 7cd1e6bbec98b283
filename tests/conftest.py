"""Two CPU devices for every test, set before JAX starts, and what tests share."""

import atexit
import importlib.metadata
import os
import shutil
import signal
import sys
import tempfile
import warnings

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Most of the suite's time is compilation: code is not optimised, and compiled once.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    " --xla_backend_optimization_level=0"
)
# A third of that time, with flags that other versions of XLA refuse to start with.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    )
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.03"
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )


def pytest_collection_modifyitems(items):
    """The longest file first: begun last, it would leave the other process idle."""
    items.sort(key=lambda item: item.path.name != "test_wheel.py")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """A command of the package, called in this process, sets it up for itself."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium, headless, as Playwright drives it."""
    playwright = pytest.importorskip("playwright.sync_api")
    # A busy machine may need longer than the usual 5 seconds.
    playwright.expect.set_options(timeout=30_000)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium: apt-get install chromium (.ci/run does)")
    with playwright.sync_playwright() as found:
        opened = found.chromium.launch(
            executable_path=executable, args=["--no-sandbox"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """Where the runs of this session keep their prepared data."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, cache_dir):
    """The workdir of a finished pre-training run; not to be written to."""
    import small_runs

    workdir = tmp_path_factory.mktemp("runs") / "pretrained"
    return small_runs.run(small_runs.config(cache_dir), workdir)


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory, cache_dir, pretrained):
    """The workdir of a finished fine-tuning run; not to be written to."""
    import small_runs

    workdir = tmp_path_factory.mktemp("runs") / "finetuned"
    return small_runs.run(small_runs.config(cache_dir, pretrained), workdir)


@pytest.fixture
def data(tmp_path):
    """The section `data` of a config, of a small toy, with a cache of its own."""
    from configs import base

    data = base.get_config().data
    data.cache_dir = str(tmp_path / "cache")
    data.toy_examples.update(train=3, validation=1, test=2, finetune=1)
    return data


@pytest.fixture
def folder(data, tmp_path):
    """`data` of a folder of 12 real and 12 fake stub images, half train, half test."""
    import prepared_folders

    prepared_folders.write_folder(tmp_path / "faces")
    data.name = "folder"
    data.dir = str(tmp_path / "faces")
    data.fractions.update(train=0.5, validation=0, test=0.5, finetune=0)
    return data


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded, in a scan or for their records."""
    from fdftnet_jax.data import images

    paths = []
    read = images.read

    def counting(source, *decoding):
        paths.append(source)
        return read(source, *decoding)

    monkeypatch.setattr(images, "read", counting)
    return paths
