"""How commands start and end. Each start takes seconds, so there are few."""

import errno
import importlib.machinery
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import small_runs

from fdftnet_jax import launch
from fdftnet_jax.errors import Interrupted, UserError

ROOT = Path(__file__).resolve().parent.parent


def start(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "arguments", "message"),
    [
        (
            "pretrain",
            ["--config.optimizer.learnig_rate=0.1"],
            "no config key 'optimizer.learnig_rate'; did you mean "
            "--config.optimizer.learning_rate?",
        ),
        (
            "pretrain",
            ["--config.epochs=many"],
            "epochs is 'many': expected a whole number",
        ),
        (
            "pretrain",
            ["--config=configs/pretrain.py:squeezenet"],
            "config argument 'squeezenet': expected BACKBONE,DATA",
        ),
        ("pretrain", ["--config=configs/pretrian.py"], "no config file"),
        ("finetune", [], "give the workdir of experiments.pretrain, or a file"),
        ("evaluate", [], "no checkpoints in"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(experiment, arguments, message, tmp_path):
    workdir = tmp_path / "run"
    command = ["-m", f"experiments.{experiment}", *arguments, f"--workdir={workdir}"]
    ended = start(*command)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert message in ended.stderr
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("error", "options"), [("UserError('bug')", ["--debug"]), ("ValueError('bug')", [])]
)
def test_an_experiment_shows_the_traceback(error, options):
    """Of a mistake with --debug; of what nobody expects always."""
    code = (
        "from experiments import launch\n"
        "from fdftnet_jax.errors import UserError\n"
        f"def main(): raise {error}\n"
        "launch.run(main)"
    )
    ended = start("-c", code, *options)
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert ended.stderr.splitlines()[-1].endswith("Error: bug")


def test_help_lists_the_flags_of_the_experiment():
    ended = start("-m", "experiments.pretrain", "--help")
    for text in ("Pre-trains a backbone", "--config", "--workdir", "--[no]debug"):
        assert text in ended.stdout


@pytest.mark.slow
def test_evaluate_prints_what_it_wrote(pretrained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(pretrained, workdir)
    code = (
        "import small_runs; from experiments import evaluate, launch; "
        "launch.run(evaluate.main)"
    )
    arguments = [f"--workdir={workdir}", "--split=all", "--pool=group", "--robustness"]
    ended = start("-c", code, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "toy-both, all split: 100 images (50 real, 50 fake), check" in ended.stdout
    assert "accuracy" in ended.stdout and "of 50, " in ended.stdout
    assert "threshold: P(fake)" in ended.stdout
    assert "JPEG compression: quality" in ended.stdout
    for name in (".json", "_scores.csv", "_groups.csv", "_robustness.svg"):
        path = workdir / "evaluation" / f"toy-both-all{name}"
        assert path.exists() and str(path) in ended.stdout
    page = (workdir / "report.html").read_text()
    assert "100 pictures that it may have learned from" in page
    assert f"  {workdir}/report.html" in ended.stdout
    warned, said = [line for line in ended.stderr.splitlines() if line]
    assert warned.startswith("warning: --split=all of toy")
    assert said.startswith("calibrated on 18 validation images: temperature")
    assert (workdir / "calibration.json").exists()


@pytest.mark.slow
def test_a_finished_training_is_calibrated(pretrained, cache_dir, tmp_path):
    """By the command; with other options a finished run is calibrated anew."""
    workdir = tmp_path / "run"
    shutil.copytree(pretrained, workdir)
    code = (
        "import small_runs; from experiments import launch; "
        "launch.run_training(f'configs/pretrain.py:{small_runs.BACKBONE},toy')"
    )
    given = [f"--config.{k}={v}" for k, v in small_runs.small(cache_dir).items()]
    for more, rule in (([], "eer"), (["--config.calibration.rule=fpr"], "fpr")):
        ended = start("-c", code, f"--workdir={workdir}", *given, *more)
        assert ended.returncode == 0, ended.stderr
        lines = ended.stderr.splitlines()
        # (So few validation pictures are warned of.)
        finished, calibrated, next_ = (x for x in lines if "warning" not in x)
        assert "is finished" in finished
        assert next_.startswith("next: python -m experiments.evaluate --workdir=")
        assert calibrated.startswith("calibrated on 18 validation images")
        found = json.loads((workdir / "calibration.json").read_text())
        assert found["rule"] == rule
    assert not (workdir / "evaluation").exists()


# What ends a command.


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 3, None),
        (UserError("expected a\nface"), 2, "error: expected a face"),
        (Interrupted(signal.SIGINT, "stopped"), 130, "stopped"),
        (Interrupted(signal.SIGTERM, "stopped"), 143, "stopped"),
        (
            OSError(errno.ENOSPC, "full", "/disk/a"),
            2,
            "error: cannot write to /disk/a: No space left on device; free space there "
            "and give the same command again",
        ),
        (
            ZeroDivisionError("a\nbug"),
            1,
            "error: unexpected ZeroDivisionError: a bug; give the same command with "
            "--debug for the traceback, and report it",
        ),
        (BrokenPipeError(), 141, None),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_code(error, code, line, capsys):
    def work():
        if error is not None:
            raise error
        return 3

    assert launch.finish(work, debug=False, traceback=False) == code
    assert capsys.readouterr().err.splitlines() == ([] if line is None else [line])


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (UserError("a mistake"), {"debug": True, "traceback": False}),
        (ZeroDivisionError("a bug"), {"debug": True, "traceback": False}),
        (ZeroDivisionError("a bug"), {"debug": False, "traceback": True}),
        # It may be reading that is not permitted.
        (PermissionError(errno.EACCES, "no"), {"debug": False, "traceback": True}),
    ],
)
def test_tracebacks_where_they_are_wanted(error, options):
    def work():
        raise error

    with pytest.raises(type(error)):
        launch.finish(work, **options)


def test_a_command_starts_with_caches_warnings_and_signals(monkeypatch, capsys):
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        launch.start(after_signal="begins again")
        with pytest.raises(Interrupted, match="by SIGTERM; the same command begins"):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    cache = os.path.expanduser("~/.cache/fdftnet_jax/xla")
    assert os.environ.pop("JAX_COMPILATION_CACHE_DIR") == cache
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "7"
    warnings.showwarning("two\nlines", UserWarning, "a.py", 1)
    assert capsys.readouterr().err == "warning: two lines\n"


@pytest.mark.parametrize(("output", "code"), [("/dev/full", 2), ("closed pipe", 141)])
@pytest.mark.parametrize(
    "script",
    [
        "from experiments import launch\n"
        "launch.run(lambda: print(*[50] * {}, sep=chr(10)))",
        "import sys; from fdftnet_jax import cli; sys.argv = ['fdftnet', 'show', 'a']\n"
        "cli._show = lambda _: print(*[50] * {}, sep=chr(10)) or 0\n"
        "sys.exit(cli.main())",
    ],
)
# Few lines fail when they are flushed, at the end.
@pytest.mark.parametrize("lines", [1, 10_000])
def test_output_that_cannot_be_written(script, output, code, lines):
    command = [sys.executable, "-c", script.format(lines)]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    if output == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(output, os.O_WRONLY)
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=buffered,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert ended.returncode == code, ended.stderr
    line = "error: cannot write: No space left on device; free space there and give "
    assert ended.stderr == (f"{line}the same command again\n" if code == 2 else "")


# Large pages.


def _run_as(monkeypatch, module, script="pytest"):
    """Makes the program that runs `python -m module`, or a script."""
    spec = importlib.machinery.ModuleSpec(module, None) if module else None
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", [f"/somewhere/bin/{script}"])


@pytest.fixture
def started_anew(monkeypatch):
    """What `os.execve` is called with."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    _run_as(monkeypatch, "experiments.finetune")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.finetune", "a"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


@pytest.mark.parametrize("given", ["", "glibc.malloc.check=1"])
def test_a_command_starts_anew_with_large_pages(started_anew, monkeypatch, given):
    if given:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    launch.use_large_pages()
    [(program, arguments, environment)] = started_anew
    assert arguments == [program, "-m", "experiments.finetune", "a"]
    tunables = environment.pop("GLIBC_TUNABLES").split(":")
    assert tunables == [*filter(None, [given]), "glibc.malloc.hugetlb=1"]
    rest = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    assert environment == rest
    # Once.
    monkeypatch.setenv("GLIBC_TUNABLES", ":".join(tunables))
    launch.use_large_pages()
    assert len(started_anew) == 1


def test_what_the_user_set_stays(started_anew, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    launch.use_large_pages()
    assert not started_anew


def test_another_c_library_is_left_alone(started_anew, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    launch.use_large_pages()
    assert not started_anew


@pytest.mark.parametrize(
    ("module", "script", "ours"),
    [
        ("fdftnet_jax.cli", "cli.py", True),
        (None, "fdftnet", True),
        (None, "other", False),
        ("pytest", "fdftnet", False),
    ],
)
def test_another_program_is_left_alone(started_anew, monkeypatch, module, script, ours):
    _run_as(monkeypatch, module, script)
    launch.use_large_pages()
    assert len(started_anew) == ours
