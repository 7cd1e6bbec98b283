"""A second run in the same output: it goes on, or is refused."""

import os
import signal
from pathlib import Path

import drawn_videos
import face_crop_runs
import pytest
from drawn_videos import Stub
from face_crop_runs import contents, prepare

from fdftnet_jax import files
from fdftnet_jax.errors import Interrupted, UserError
from fdftnet_jax.faces import workers


@pytest.fixture
def config():
    return face_crop_runs.crop_config()


@pytest.fixture
def tree(tmp_path):
    return face_crop_runs.write_tree(tmp_path / "in")


@pytest.fixture
def serial(monkeypatch):
    return face_crop_runs.without_processes(monkeypatch)


def test_the_number_of_processes_changes_nothing(config, tree, tmp_path):
    for i in range(3):
        drawn_videos.write(tree / f"{i}.mp4", drawn_videos.moving(6 + i, 30))
    (tree / "broken.mp4").touch()
    for number in (1, 3):
        config.workers = number
        prepare(config, tree, tmp_path / str(number))
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_a_finished_run_is_not_done_again(config, tree, tmp_path, serial):
    prepare(config, tree, tmp_path / "out")
    before = contents(tmp_path / "out")
    serial.clear()
    found = prepare(config, tree, tmp_path / "out")
    assert not serial and contents(tmp_path / "out") == before
    assert (found.new, found.videos, found.crops) == (0, 2, 8)


def test_a_changed_video_is_prepared_again(config, tree, tmp_path, serial):
    prepare(config, tree, tmp_path / "out")
    drawn_videos.write(tree / "real/a/003.mp4", drawn_videos.moving(4, 60))
    serial.clear()
    found = prepare(config, tree, tmp_path / "out")
    assert serial == ["real/a/003.mp4"] and (found.new, found.changed) == (1, 1)
    prepare(config, tree, tmp_path / "anew")
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")
    # What was cut out of it goes when it cannot be read any more.
    (tree / "real/a/003.mp4").write_bytes(b"")
    prepare(config, tree, tmp_path / "out")
    assert not (tmp_path / "out/real/a/003").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("every", 4), ("margin", 0.3), ("min_confidence", 0.7)]
)
def test_crops_of_two_preparations_are_not_mixed(
    field, value, config, tree, tmp_path, serial
):
    prepare(config, tree, tmp_path / "out")
    before = contents(tmp_path / "out")
    config[field] = value
    with pytest.raises(UserError, match=rf"otherwise \({field}: .* -> {value}\)"):
        prepare(config, tree, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    # Another version of the detector is another preparation, too.
    newer = type("Newer", (Stub,), {"version": staticmethod(lambda: "2")})
    with pytest.raises(UserError, match="detector_version: '1' -> '2'"):
        prepare(config, tree, tmp_path / "out", newer)


def test_a_second_process_is_refused(config, tree, tmp_path, serial):
    (tmp_path / "out").mkdir()
    with (
        files.lock(tmp_path / "out/.lock", blocking=False),
        pytest.raises(UserError, match=f"process {os.getpid()} is preparing faces"),
    ):
        prepare(config, tree, tmp_path / "out")


def test_a_signal_keeps_what_is_done(config, tree, tmp_path, monkeypatch):
    """The first video is done, the second is in work."""
    prepare(config, tree, tmp_path / "undisturbed")
    deal = workers.deal

    def stopping(*arguments):
        results = deal(*arguments)
        yield next(results)
        raise Interrupted(signal.SIGTERM, "")

    with monkeypatch.context() as patch:
        patch.setattr(workers, "deal", stopping)
        with pytest.raises(Interrupted, match=r"SIGTERM: 1 of 2 videos are done"):
            prepare(config, tree, tmp_path / "out")
    assert not (tmp_path / "out/.incomplete").exists()
    assert sorted(path.name for path in tmp_path.glob("out/*/*")) == ["000_003"]
    found = prepare(config, tree, tmp_path / "out")
    assert (found.new, found.videos) == (1, 2)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_folder_of_crops_appears_at_once(config, tree, tmp_path, serial, monkeypatch):
    """Until a video's last file is written, none has its place."""
    seen = []
    rename = Path.rename

    def watched(self, target):
        seen.append((sorted(p.name for p in self.iterdir()), os.path.exists(target)))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    prepare(config, tree, tmp_path / "out")
    crops = [f"{frame:06d}_0.png" for frame in (0, 3, 6, 9)]
    assert seen == [([".prepared.json", *crops], False)] * 2
