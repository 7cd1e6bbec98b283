"""Runs of `preparation.prepare` that tests share."""

import csv

import drawn_videos

from configs import prepare_faces
from fdftnet_jax.faces import preparation, workers


def crop_config():
    config = prepare_faces.get_config("stub")
    config.every = 3
    config.min_size = 24
    config.workers = 1
    return config


def write_tree(folder):
    """Two classes of one video each; the real one's square is 40, the fake one's 50."""
    drawn_videos.write(folder / "real/a/003.mp4", drawn_videos.moving())
    drawn_videos.write(folder / "fake/000_003.avi", drawn_videos.moving(side=50))
    (folder / "notes.txt").write_text("no video")
    return folder


def without_processes(monkeypatch):
    """Returns the list of the videos that will be read."""
    read = []

    def deal(make, tasks, number):
        work = make()
        for task in tasks:
            read.append(task.video)
            yield task, work(task)

    monkeypatch.setattr(workers, "deal", deal)
    return read


def prepare(config, source, output, detector=drawn_videos.Stub, **options):
    return preparation.prepare(config, source, output, {"stub": detector}, **options)


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def reasons(output):
    return [
        (r["video"], r["frame"], r["reason"]) for r in table(output / "rejected.csv")
    ]


def contents(folder):
    """Path -> bytes of all files, but for the lock's, which names a process."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
