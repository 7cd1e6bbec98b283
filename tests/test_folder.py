import csv
import io
import json
import os
import sys
import types
from pathlib import Path

import imagehash
import numpy as np
import PIL
import pytest
from PIL import Image

from configs import base
from fdftnet_jax import datasets
from fdftnet_jax.data import caches, folder, images, inspection, leaks, splits
from fdftnet_jax.data.leaks import Finding
from fdftnet_jax.errors import UserError


def picture(seed, size=32):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))


@pytest.fixture
def data(tmp_path):
    """20 real and 20 fake pictures."""
    for label, name in enumerate(("real", "fake")):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for i in range(20):
            seed = 100 * label + i
            picture(seed).save(tmp_path / "faces" / name / f"{i:02d}.png")
    data = base.get_config().data
    data.name, data.dir = "folder", str(tmp_path / "faces")
    data.cache_dir = str(tmp_path / "cache")
    data.fractions.update(train=0.5, validation=0, test=0.5, finetune=0)
    return data


def rejected(data):
    """What `rejected.csv` says, by path."""
    (report,) = Path(data.cache_dir).rglob("rejected.csv")
    with report.open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def write_png(path):
    picture(7).save(path)


def write(content):
    return lambda path: path.write_bytes(content)


def animation(path):
    picture(1).save(path, save_all=True, append_images=[picture(2)])


def whole():
    return images.encode_png(np.asarray(picture(3)))


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("a.png", write(b"no image"), "not in an image format that is read here"),
        ("a.png", write(whole()[:600]), "image file is truncated"),
        ("a.png", write(b""), "empty"),
        ("a.png", animation, "several frames (an animation?); save one as a picture"),
        ("a.webp", animation, "several frames (an animation?); save one as a picture"),
        ("a.jpg", write(whole()), "PNG data under the suffix .jpg"),
        ("a.JPEG", write(whole()), "PNG data under the suffix .jpeg"),
        ("a", write(whole()), "PNG data under the suffix (none)"),
        ("a.txt", write(whole()), "PNG data under the suffix .txt"),
        ("a.png", lambda path: path.symlink_to("gone"), "No such file or directory"),
        ("a.png", lambda path: os.mkfifo(path), "not a regular file"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_out_and_listed(data, name, make, reason):
    make(Path(data.dir) / "real" / name)
    with pytest.warns(UserWarning, match=r"left out 1 of 41 image files in .*\.csv$"):
        dataset = datasets.prepare(data)
    assert rejected(data) == {f"real/{name}": reason}
    paths = [record["path"] for record in dataset.source("all")]
    assert len(paths) == 40 and f"real/{name}" not in paths


def test_a_decompression_bomb(data, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32)
    Image.new("RGB", (64, 64)).save(Path(data.dir) / "real/bomb.png")
    with pytest.warns(UserWarning, match="left out 1 of 41"):
        datasets.prepare(data)
    reason = (
        "more than the 1,024 pixels that are read; cut out the part in question at its "
        "own size"
    )
    assert rejected(data) == {"real/bomb.png": reason}


def test_names_that_are_not_utf_8(data):
    faces = os.fsencode(data.dir)
    for name in (b"/real/\xff.png", b"/fake/\xfe/b.png"):
        os.makedirs(os.path.dirname(faces + name), exist_ok=True)
        with open(faces + name, "wb") as file:
            file.write(whole())
    with open(faces + b"/real/\xff.txt", "w") as file:
        file.write("no image")
    data.max_rejected = 0.1
    with pytest.warns(UserWarning, match="left out 2 of 42"):
        dataset = datasets.prepare(data)
    assert rejected(data) == {
        "real/\\xff.png": "its name is not UTF-8",
        "fake/\\xfe/b.png": "its name is not UTF-8",
        "real/\\xff.txt": "not an image file",
    }
    assert len(dataset.source("all")) == 40


def test_a_folder_whose_own_name_is_not_utf_8(data):
    odd = os.fsdecode(os.fsencode(data.dir) + b"\xff")
    os.rename(data.dir, odd)
    data.dir = odd
    dataset = datasets.prepare(data)
    assert len(dataset.source("all")) == 40
    assert dataset.name == r"faces\xff"


def test_files_of_other_kinds_are_listed_but_nobody_s_loss(data, recwarn):
    for name in ("notes.txt", "a.json", "b"):
        (Path(data.dir) / "real" / name).write_text("{}")
    (Path(data.dir) / "real/.hidden").write_text("{}")
    data.max_rejected = 0.0
    datasets.prepare(data)
    names = ("notes.txt", "a.json", "b")
    assert rejected(data) == {f"real/{name}": "not an image file" for name in names}
    assert not recwarn


@pytest.mark.parametrize(("limit", "number"), [(0.05, 2), (0.05, 3), (0, 1), (1, 9)])
def test_too_many_unusable_files_stop_the_run(data, limit, number):
    for i in range(number):
        (Path(data.dir) / f"fake/bad{i}.png").touch()
    data.max_rejected = limit
    if number <= limit * (40 + number):
        with pytest.warns(UserWarning, match=f"left out {number} of"):
            datasets.prepare(data)
        return
    with pytest.raises(UserError, match=f"found {number} of {40 + number}") as error:
        datasets.prepare(data)
    assert f"at most {limit:.0%} of" in str(error.value)
    assert "rejected.csv" in str(error.value) and "\n" not in str(error.value)
    assert len(rejected(data)) == number


def test_unusable_files_are_counted_by_class(data):
    for i in range(3):
        (Path(data.dir) / f"fake/bad{i}.png").touch()
    (Path(data.dir) / "real/bad.png").touch()
    data.max_rejected = 1.0
    with pytest.warns(UserWarning, match=r"left out 4 of 44 .* \(1 real, 3 fake; 4 x "):
        datasets.prepare(data)


def test_videos_and_pictures_of_other_names_are_nobody_s_silent_loss(data):
    (Path(data.dir) / "real/film.mp4").touch()
    write_png(Path(data.dir) / "real/named.png")
    (Path(data.dir) / "real/named.png").rename(Path(data.dir) / "real/named")
    with pytest.warns(UserWarning, match="left out 2 of 42"):
        datasets.prepare(data)
    assert rejected(data) == {
        "real/film.mp4": "a video; cut its faces out with experiments.prepare_faces",
        "real/named": "PNG data under the suffix (none)",
    }


def test_a_picture_named_like_a_video_is_a_picture(data):
    write_png(Path(data.dir) / "real/a.png")
    (Path(data.dir) / "real/a.png").rename(Path(data.dir) / "real/a.mp4")
    with pytest.warns(UserWarning, match="left out 1 of 41"):
        datasets.prepare(data)
    assert rejected(data) == {"real/a.mp4": "PNG data under the suffix .mp4"}


def test_ignored_folders_are_warned_of(data):
    for name in ("Real2/a.png", "fake_gan/b.png", "fake_gan/c.png", "loose.png"):
        (Path(data.dir) / name).parent.mkdir(exist_ok=True)
        write_png(Path(data.dir) / name)
    message = r"ignored 4 images of .*: directly in it \(1\), Real2/ \(1\), fake_gan/"
    with pytest.warns(UserWarning, match=message):
        assert len(datasets.prepare(data).source("all")) == 40


@pytest.mark.parametrize(("number", "uneven"), [(7, False), (6, True)])
def test_classes_of_very_different_sizes_are_warned_of(data, number, uneven, recwarn):
    for path in sorted((Path(data.dir) / "fake").iterdir())[number:]:
        path.unlink()
    data.fractions.update(train=1.0, test=0)
    datasets.prepare(data)
    said = [str(warning.message) for warning in recwarn]
    assert bool(said) == uneven
    if uneven:
        assert "has 20 real and 6 fake images" in said[0]


def test_a_repaired_file_is_used(data):
    path = Path(data.dir) / "real/00.png"
    before = path.read_bytes()
    path.write_bytes(before[:200])
    with pytest.warns(UserWarning, match="left out 1 of 40"):
        assert len(datasets.prepare(data).source("all")) == 39
    path.write_bytes(before)
    assert len(datasets.prepare(data).source("all")) == 40


@pytest.fixture
def looked(monkeypatch):
    """The paths of the files that are looked at."""
    paths = []
    look = inspection.look

    def counting(directory, file, *rest):
        paths.append(file.path)
        return look(directory, file, *rest)

    monkeypatch.setattr(inspection, "look", counting)
    return paths


def inspect(data):
    listed = splits.list_files(data.dir)
    return inspection.inspect(data.dir, listed, Path(data.cache_dir))


def test_every_image_is_looked_at_once(data, looked):
    first = inspect(data)
    assert len(looked) == len(set(looked)) == 40
    assert inspect(data) == first
    assert len(looked) == 40
    # Only what is new or changed is looked at again, and what was left out.
    faces = Path(data.dir)
    (faces / "real/00.png").unlink()
    write_png(faces / "real/01.png")
    write_png(faces / "real/new.png")
    (faces / "real/bad.png").touch()
    del looked[:]
    second = inspect(data)
    assert sorted(looked) == ["real/01.png", "real/bad.png", "real/new.png"]
    assert second["real/01.png"].digest == second["real/new.png"].digest
    assert second["real/02.png"] == first["real/02.png"]
    assert inspect(data) == second
    assert looked[3:] == ["real/bad.png"]


def test_other_rules_need_no_other_look(data, looked):
    datasets.prepare(data)
    data.fractions.update(train=0.6, test=0.4)
    data.group_by, data.duplicates = r"\d+", "drop"
    datasets.prepare(data)
    assert len(looked) == 40


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('{"version": [2, ', '{"version": [1, '),
        lambda text: text.replace(f'"{PIL.__version__}"', '"10.0"'),
    ],
)
def test_damaged_or_outdated_findings_are_found_anew(data, looked, damage):
    first = inspect(data)
    (memory,) = Path(data.cache_dir).glob("inspections/*.json")
    before = memory.read_text()
    memory.write_text(damage(before))
    assert memory.read_text() != before
    assert inspect(data) == first
    assert len(looked) == 80
    assert json.loads(memory.read_text()) == json.loads(before)


def test_a_finding(tmp_path):
    (tmp_path / "real").mkdir()
    grey = picture(5, 40).resize((60, 40))
    grey.save(tmp_path / "real/a.jpg", quality=80)
    found = inspection.look(str(tmp_path), splits.File("real/a.jpg", "", 0, "a.jpg"))
    pixels = images.decode(tmp_path / "real/a.jpg")
    assert found == Finding(
        reason="",
        digest=leaks.digest(pixels),
        phash=str(imagehash.phash(Image.fromarray(pixels))),
        format="JPEG",
        width=60,
        height=40,
        quality=80,
    )


def test_a_scan_returns_what_it_found_and_writes_no_report(data):
    (Path(data.dir) / "real/bad.png").touch()
    cache = Path(data.cache_dir)
    rules = folder.Rules(fractions={"train": 0.5, "test": 0.5})
    found = folder.scan(data.dir, rules, cache)
    assert found.rejected == {"real/bad.png": "empty"}
    assert sum(map(len, found.examples.values())) == 40 and not found.error
    assert len(found.warnings) == 1
    assert [report.path.name for report in found.reports if report.text] == [
        "rejected.csv",
        "shortcuts.csv",
    ]
    assert not list(cache.rglob("*.csv"))
    with pytest.warns(UserWarning, match="left out 1 of 41"):
        folder.publish(found, cache)
    for report in found.reports:
        assert (report.path.read_text() if report.path.exists() else "") == report.text


def kept(tmp_path, number=3):
    """Pictures of a scan, and the same by digest."""
    some = {str(i): np.asarray(picture(i)) for i in range(number)}
    pictures = caches.Pictures(tmp_path)
    for digest, pixels in some.items():
        pictures.keep(digest, pixels)
    return pictures, some


def test_pictures_are_kept_in_a_file_without_a_name(tmp_path):
    pictures, some = kept(tmp_path)
    with pictures:
        for digest, pixels in some.items():
            with Image.open(io.BytesIO(pictures.get(digest))) as image:
                np.testing.assert_array_equal(np.asarray(image), pixels)
        assert pictures.get("another") is None
        assert not list(tmp_path.iterdir())
    assert pictures.get("0") is None


def test_pictures_are_given_up_where_the_records_would_have_no_room(
    tmp_path, monkeypatch
):
    size = len(images.encode_png(np.asarray(picture(0))))
    room = types.SimpleNamespace(f_bavail=5 * size // 2, f_frsize=1)
    monkeypatch.setattr(os, "fstatvfs", lambda _: room)
    for number, there in ((1, True), (3, False)):
        pictures, some = kept(tmp_path, number)
        with pictures:
            assert [bool(pictures.get(d)) for d in some] == [there] * number


def test_a_digest_is_that_of_pixels_and_shape():
    pixels = np.asarray(picture(0))
    same = images.decode(images.encode_png(pixels))
    assert leaks.digest(pixels) == leaks.digest(same)
    assert leaks.digest(pixels) == leaks.digest(pixels[:, ::-1][:, ::-1])
    changed = pixels.copy()
    changed[3, 4, 1] ^= 1
    others = (changed, pixels.reshape(16, 64, 3), pixels[:-1], pixels[:, ::-1])
    assert len({leaks.digest(p) for p in (pixels, *others)}) == 5


def waves(seed):
    """A picture of a few low frequencies, as a photograph's."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :96] / 96 * np.pi
    waves = [
        rng.normal() * np.cos(u * rows) * np.cos(v * columns)
        for u in range(8)
        for v in range(8)
    ]
    return np.clip(128 + 20 * np.sum(waves, 0), 0, 255).astype(np.uint8)[..., None]


def test_a_perceptual_hash_survives_re_encoding_and_tells_pictures_apart():
    hashes = []
    for seed in range(5):
        pixels = np.repeat(waves(seed), 3, axis=-1)
        small = np.asarray(Image.fromarray(pixels).resize((50, 50)))
        first, second = (int(leaks.perceptual_hash(p), 16) for p in (pixels, small))
        assert (first ^ second).bit_count() <= 2
        hashes.append(first)
    apart = [(a ^ b).bit_count() for a in hashes for b in hashes if a != b]
    assert len(apart) == 20 and min(apart) > 10


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((20, 30)),
        np.full((20, 30), 200),
        np.linspace(0, 255, 20)[:, None] + np.zeros(30),
        np.where(np.arange(30) < 11, 0, 255) + np.zeros((20, 1)),
        np.random.default_rng(0).integers(100, 103, (20, 30)),
    ],
)
def test_plain_pictures_have_no_perceptual_hash(values):
    pixels = np.repeat(values[..., None], 3, axis=-1).astype(np.uint8)
    assert leaks.perceptual_hash(pixels) == ""


def test_a_terminal_sees_the_inspection(data, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    inspect(data)
    out, err = capsys.readouterr()
    assert "inspecting: 100%" in err and "40/40" in err and not out


def test_a_file_without_permission_is_left_out(data):
    path = Path(data.dir) / "real/00.png"
    # What is imported at the first call may be the privileged user's, too.
    assert not inspect(data)["real/00.png"].reason
    path.chmod(0)
    cache = Path(data.cache_dir)
    for inner in (cache, *cache.rglob("*")):
        inner.chmod(0o777)
    if not os.geteuid():
        for inner in cache.parents:
            if not inner.stat().st_mode & 0o005:
                inner.chmod(0o755)
        os.seteuid(65534)
    try:
        assert inspect(data)["real/00.png"].reason == "Permission denied"
    finally:
        if not os.getuid():
            os.seteuid(0)
    path.chmod(0o644)
    assert not inspect(data)["real/00.png"].reason
