"""The command: what it says, what a kill, a signal and a full disk leave behind."""

import ast
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import drawn_videos
import face_crop_runs
import pytest
from test_full_disk_preparation import _MOUNT, can_mount

from configs import prepare_faces
from fdftnet_jax.faces import preparation

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.prepare_faces", *arguments],
        cwd=HERE.parent,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )


def test_faces_are_cut_out_and_the_next_command_is_named(tmp_path):
    """With the detector that comes with OpenCV."""
    for name, side in (("real/one", 80), ("fake/two", 100)):
        frames = [
            drawn_videos.face(60 + i, 50, side, drawn_videos.canvas(240, 320))
            for i in range(11)
        ]
        drawn_videos.write(tmp_path / f"in/{name}.mp4", frames)
    drawn_videos.write(tmp_path / "in/real/nobody.avi", [drawn_videos.canvas()])
    out = tmp_path / "out"
    ended = command(f"--input={tmp_path / 'in'}", f"--output={out}", "--config.every=5")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "3 videos: 3 prepared now, 0 before, 0 unreadable" in ended.stdout
    assert "crops     6, " in ended.stdout and "1 no face" in ended.stdout
    assert f"--config.data.dir={out} --config.data.group_by=folder" in ended.stdout
    assert len(list(out.glob("real/one/*.png"))) == 3
    assert len(list(out.glob("fake/two/*.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.evry=2"], "did you mean --config.every?"),
        (["--config.zzz=2"], "see configs/prepare_faces.py"),
        (["--config.every=two"], "every is 'two': expected a whole number"),
        (["--config=configs/prepare_faces.py:retina"], "'cascade' or 'mtcnn'"),
        ([], "found none (2 x unreadable video)"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, message, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/empty.mp4").touch()
    (tmp_path / "in/text.avi").write_text("text")
    out = tmp_path / "out"
    ended = command(f"--input={tmp_path / 'in'}", f"--output={out}", *arguments)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == "" and ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1 and message in ended.stderr


def test_every_field_is_read_and_commented():
    tree = ast.parse(inspect.getsource(preparation))
    reads = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    lines = inspect.getsource(prepare_faces.get_config).splitlines()
    for key in prepare_faces.get_config():
        assert key in reads
        [number] = [i for i, line in enumerate(lines) if f"config.{key} = " in line]
        assert lines[number - 1].strip().startswith("#")


@pytest.fixture
def videos(tmp_path):
    """Three videos, the second of which makes `waiting_run` wait."""
    for i in range(3):
        drawn_videos.write(tmp_path / f"in/{i}.avi", drawn_videos.moving(12, 40 + i))
    dark = drawn_videos.canvas(colour=(9, 9, 9))
    drawn_videos.write(tmp_path / "in/1.avi", [*drawn_videos.moving(12), dark, dark])
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_a_run_that_is_stopped_goes_on(number, code, videos, tmp_path):
    process = subprocess.Popen(
        [sys.executable, HERE / "waiting_run.py", videos, tmp_path / "out"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline().strip().isdigit()
    if number == signal.SIGINT:
        # A terminal sends it to all of them.
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    if number != signal.SIGKILL:
        assert stderr.count("\n") == 1, stderr
        assert f"stopped by {number.name}: 1 of 3 videos are done; the same" in stderr
        assert not (tmp_path / "out/.incomplete").exists()
    done = [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert sorted(set(done) - {".incomplete"}) == ["0"]
    config = face_crop_runs.crop_config()
    found = face_crop_runs.prepare(config, videos, tmp_path / "out")
    assert found.new == 2
    face_crop_runs.prepare(config, videos, tmp_path / "undisturbed")
    assert face_crop_runs.contents(tmp_path / "out") == face_crop_runs.contents(
        tmp_path / "undisturbed"
    )


def test_a_full_disk(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    if not can_mount(out):
        pytest.skip("needs a user namespace to mount a tmpfs in")
    for i in range(3):
        drawn_videos.write(tmp_path / f"in/{i}.avi", drawn_videos.moving(12, 60))
    script = f"""
import os, face_crop_runs
from pathlib import Path
from fdftnet_jax.errors import UserError
out = Path({str(out)!r})
def run():
    config = face_crop_runs.crop_config()
    return face_crop_runs.prepare(config, {str(tmp_path / "in")!r}, out)
try:
    run()
except UserError as error:
    print(error)
print((out / ".incomplete").exists(), (out / "2").exists(), (out / "0").exists())
os.system(f"mount -o remount,size=4m {{out}}")
print(run().crops)
"""
    mount = f"mount -t tmpfs -o size=64k none '{out}'"
    path = write(tmp_path / "script.py", script)
    ended = subprocess.run(
        [*_MOUNT, f'{mount} && exec "$0" "$1"', sys.executable, path],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        env=ENVIRONMENT,
    )
    assert not ended.returncode, ended.stderr
    error, left, crops = ended.stdout.splitlines()
    assert error.startswith(f"cannot write face crops to {out}: No space left")
    assert " MB are free there; " in error and "videos that are not done" in error
    assert left == "False False True"
    assert crops == "12"


def write(path, script):
    """A script that processes of its own can import."""
    lines = "\n".join(f"    {line}" for line in script.splitlines())
    path.write_text(f"def main():\n{lines}\nif __name__ == '__main__':\n    main()\n")
    return path
