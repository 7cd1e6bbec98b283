"""Two CPU devices for every test, set before JAX starts, and runs that tests share."""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation: code is not optimised, and compiled once.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    " --xla_backend_optimization_level=0"
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )


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
