"""What a run trains on: shots, replay, balance."""

import dataclasses
import shutil

import jax
import ml_collections
import numpy as np
import pytest
import small_runs

from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import images, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.records import Lineage, TrainedOn
from fdftnet_jax.training import feed, run_data, steps

RESIZE = preprocess.Preprocessing(size=small_runs.SIZE)


def old_forgery(cache_dir, **changes):
    """The record of a toy that weights were trained on."""
    data = small_runs.config(cache_dir, **{"data.family": "blended", **changes}).data
    return Lineage((TrainedOn(data.to_dict(), "x", ""),))


def paths(part, records):
    return {records[int(i)]["path"] for i in part.indices}


def test_replay_draws_shots_of_the_old_train_and_validation_split(cache_dir):
    config = small_runs.config(
        cache_dir, "base", **{"data.replay": 3, "data.family": "upsampled"}
    )
    data = run_data.prepare(config, old_forgery(cache_dir))
    for parts, own in ((data.train, 24), (data.validation, 18)):
        new, old = parts
        assert len(new.indices) == own
        assert new.dataset.name == "toy-upsampled" and old.dataset.name == "toy-blended"
        labels = [old.records[int(i)]["label"] for i in old.indices]
        assert sorted(labels) == [0, 0, 0, 1, 1, 1]
    assert data.num_images() == 30
    source, validation = feed.sources(data, config, RESIZE)
    assert len(source) == 30 and len(validation) == 24
    # An image's index leads to its file, and to its pixels.
    listed = data.paths([int(source[i]["index"]) for i in range(30)])
    new, old = data.train
    assert set(listed[:24]) == paths(new, new.records)
    assert set(listed[24:]) == paths(old, old.records)
    of_old = old.records[int(old.indices[2])]
    expected = RESIZE(images.decode_png(of_old["image"]))
    np.testing.assert_array_equal(source[26]["image"], expected)
    assert source[26]["label"] == of_old["label"]


def test_the_labels_are_in_the_order_of_the_source(cache_dir):
    config = small_runs.config(cache_dir, "base", **{"data.replay": 3})
    data = run_data.prepare(config, old_forgery(cache_dir))
    for parts, source in zip(
        (data.train, data.validation),
        feed.sources(data, config, RESIZE),
        strict=True,
    ):
        expected = [source[i]["label"] for i in range(len(source))]
        np.testing.assert_array_equal(feed.labels(parts), expected)


def test_without_replay_there_is_one_part(cache_dir):
    data = run_data.prepare(small_runs.config(cache_dir, "base"), Lineage())
    assert [len(parts) for parts in (data.train, data.validation)] == [1, 1]
    assert data.replayed is None and len(data.train[0].indices) == 24


def test_replay_of_a_folder_that_is_named(cache_dir, tmp_path):
    folder = small_runs.write_folder(tmp_path / "old", ("train", "validation"))
    config = small_runs.config(
        cache_dir, "base", **{"data.replay": 2, "data.replay_dir": str(folder)}
    )
    for before in (Lineage(), old_forgery(cache_dir)):
        data = run_data.prepare(config, before)
        assert len(data.train[1].indices) == len(data.validation[1].indices) == 4
        assert data.paths([32 + int(data.train[1].indices[0])])[0].startswith(
            str(folder / "train")
        )
        # The weights have not seen it before: their checkpoint tells of it.
        own, replayed, *_ = data.lineage(before)
        assert own == data.own and replayed == data.replayed
        assert replayed.directory == str(folder)
        assert replayed.splits == ("train", "validation")


def test_without_other_data_that_the_weights_have_seen_there_is_no_replay(
    cache_dir, tmp_path, capsys
):
    """Neither where a file of weights names none, nor on the same data set."""
    folder = small_runs.write_folder(tmp_path / "faces")
    toy = small_runs.config(cache_dir, "base", **{"data.replay": 2})
    own = small_runs.folder_config(cache_dir, folder, "base", **{"data.replay": 2})
    for config in (toy, own):
        first = run_data.prepare(config, Lineage())
        dataset = first.train[0].dataset
        earlier = TrainedOn(
            {**config.data.to_dict(), "train_split": "train"},
            dataset.fingerprint(("train", "validation")),
            dataset.directory,
        )
        grown = dataclasses.replace(earlier, fingerprint="before it had more images")
        cases = [(), (earlier,)] + [(grown,)] * (config is own)
        for before in cases:
            capsys.readouterr()
            data = run_data.prepare(config, Lineage(before))
            assert len(data.train) == len(data.validation) == 1
            assert (data.replay, data.replayed) == ("", None)
            assert "--config.data.replay_dir=PATH" in capsys.readouterr().err
        # What was seen before it is replayed.
        data = run_data.prepare(config, Lineage((earlier, *old_forgery(cache_dir))))
        assert data.train[1].dataset.name == "toy-blended"


def test_replay_of_data_that_are_gone_says_how_to_go_on(cache_dir, tmp_path):
    config = small_runs.config(cache_dir, "base", **{"data.replay": 2})
    gone = small_runs.folder_config(cache_dir, tmp_path / "gone").data.to_dict()
    old = Lineage((TrainedOn(gone, "x", str(tmp_path / "gone")),))
    with pytest.raises(UserError, match=r"gone.*--config.data.replay=0") as error:
        run_data.prepare(config, old)
    assert "\n" not in str(error.value)


def test_fewer_old_images_than_asked_for(cache_dir, capsys):
    config = small_runs.config(cache_dir, "base", **{"data.replay": 50})
    data = run_data.prepare(config, old_forgery(cache_dir))
    assert len(data.train[1].indices) == 32
    assert "fewer than 50 shots per class in the split 'train'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("trained", "held_out"),
    [("old/train", "new/test"), ("new/finetune", "old/validation")],
)
def test_a_picture_of_both_folders_is_not_trained_on_and_tested(
    cache_dir, tmp_path, trained, held_out
):
    folders = {name: tmp_path / name for name in ("old", "new")}
    for seed, folder in enumerate(folders.values()):
        small_runs.write_folder(folder, number=3, seed=seed)
    # Twice: neither copy may stay.
    for name in ("x.png", "yx.png"):
        shutil.copy(
            tmp_path / held_out / "fake" / "1.png", tmp_path / trained / "fake" / name
        )
    changes = {"data.replay": 5, "data.replay_dir": str(folders["old"])}
    config = small_runs.folder_config(cache_dir, folders["new"], "base", **changes)
    config.data.shots = 0
    with pytest.raises(
        UserError, match=r"2 pictures of .*x\.png and .*1\.png"
    ) as error:
        run_data.prepare(config, Lineage())
    assert "--config.data.duplicates=drop" in str(error.value)
    config.data.duplicates = "drop"
    with pytest.warns(UserWarning, match="not trained on: 2 pictures"):
        data = run_data.prepare(config, Lineage())
    parts = dict(zip(("new", "old"), data.train, strict=True))
    left = parts.pop(trained[:3])
    assert left.counts == (3, 3) and len(left.indices) == 6
    assert not any(path.endswith("x.png") for path in paths(left, left.records))
    assert next(iter(parts.values())).counts == (3, 3)


@pytest.mark.parametrize("fake", [1, 5, 10])
def test_class_weights_count_both_classes_the_same(fake):
    parts = []
    for counts in ((10 - fake // 2, 2 + fake // 2), (5, 3)):
        records = [{"label": label} for label in (0, 1) for _ in range(counts[label])]
        indices = np.arange(len(records))
        parts.append(run_data.Part(None, "train", records, indices, counts))
    data = run_data.RunData(parts, [], TrainedOn({}, "", ""))
    labels = np.repeat([0, 1], [15 - fake // 2, 5 + fake // 2])
    weights = np.array(feed.class_weights(data, "weights"))
    real, faked = (weights[labels[labels == label]].sum() for label in (0, 1))
    assert real == pytest.approx(faked) and real + faked == pytest.approx(20)
    assert data.fake_share("none") == pytest.approx(labels.mean())
    assert data.fake_share("weights") == data.fake_share("batches") == 0.5
    assert feed.class_weights(data, "batches") == (1, 1)


def test_balanced_batches():
    source = list(range(100, 120))
    labels = np.repeat([0, 1], [15, 5]).astype(np.int32)
    (real, of_real), (fake, of_fake) = feed.members(source, "batches", labels)
    assert of_real == of_fake
    assert [real[i] for i in range(len(real))] == source[:15]
    assert [fake[i] for i in range(len(fake))] == source[15:]
    assert feed.members(source, "none", labels) == [(source, 1.0)]


@pytest.mark.parametrize("differ", [False, True])
def test_classes_of_different_size_are_warned_of_where_windows_are_cut(
    cache_dir, tmp_path, differ, recwarn
):
    rng = np.random.default_rng(0)
    for split in ("validation", "finetune"):
        for side, label in ((40, "real"), (60 if differ else 40, "fake")):
            folder = tmp_path / "faces" / split / label
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (side, 64, 3), np.uint8)
                (folder / f"{i}.png").write_bytes(images.encode_png(pixels))
    config = small_runs.folder_config(cache_dir, tmp_path / "faces", "base")
    data = run_data.prepare(config, Lineage())
    recwarn.clear()
    crops = preprocess.Preprocessing(view="crops", size=32, grid=2)
    source, validation = feed.sources(data, config, crops)
    told = [str(w.message) for w in recwarn]
    assert len(told) == differ
    assert not differ or "40 and 60 pixels in the median" in told[0]
    # Whole images to train on, a grid of windows to be scored by.
    assert source[0]["image"].shape in ((40, 64, 3), (60, 64, 3))
    assert validation[0]["image"].shape == (4, 32, 32, 3)
    with config.unlocked():
        config.keep = "last"
    _, validation = feed.sources(data, config, crops)
    # Whatever validation says: one window, in the middle.
    window = validation[0]["image"]
    whole = images.decode_png(data.validation[0].records[0]["image"])
    top, left = ((length - 32) // 2 for length in whole.shape[:2])
    np.testing.assert_array_equal(window, whole[top : top + 32, left : left + 32])


def test_only_whole_views_of_one_process_stay_on_the_devices(monkeypatch):
    config = ml_collections.ConfigDict(
        {
            "data": {"size": 100, "device_megabytes": 3, "view": "resize"},
            "augment": {"jpeg": 0.0, "blur": 0.0, "rescale": 0.0},
        }
    )
    assert feed.fits_devices(config, 100)
    assert not feed.fits_devices(config, 101)
    config.data.view = "crops"
    assert not feed.fits_devices(config, 100)
    config.data.view = "resize"
    for name in ("jpeg", "blur", "rescale"):
        config.augment[name] = 0.1
        assert not feed.fits_devices(config, 100)
        config.augment[name] = 0.0
    assert feed.fits_devices(config, 100)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert not feed.fits_devices(config, 100)


# Runs.


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {
            "data.replay": 4,
            "class_balance": "batches",
            "augment.jpeg": 0.5,
            "augment.blur": 0.5,
        },
        {"data.view": "crops", "data.crop_grid": 2, "class_balance": "weights"},
        {"release_epoch": 1, "optimizer.l2_sp": 0.1, "optimizer.backbone_rate": 0.5},
    ],
    ids=["replay", "crops", "release"],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    pretrained, cache_dir, tmp_path, monkeypatch, changes
):
    # Under a linear layer, which compiles in a fraction of FDFtNet's time.
    linear = {"model.kind": "linear", **changes}
    config = small_runs.config(cache_dir, pretrained, **linear)
    whole = small_runs.run(config, tmp_path / "whole")
    small_runs.stop(monkeypatch, 2, before_saving=False)
    with pytest.raises(small_runs.StopError):
        small_runs.run(config, tmp_path / "stopped")
    monkeypatch.undo()
    small_runs.run(config, tmp_path / "stopped")
    small_runs.assert_same(whole, tmp_path / "stopped")


@pytest.mark.slow
def test_a_backbone_is_released_at_its_epoch(pretrained, cache_dir, tmp_path):
    """Up to then the run is that of a frozen one."""
    backbones = []
    for epochs, released in ((1, 0), (1, 1), (2, 1)):
        config = small_runs.config(
            cache_dir,
            pretrained,
            epochs=epochs,
            release_epoch=released,
            patience=9,
            **{"model.kind": "linear"},
        )
        workdir = small_runs.run(config, tmp_path / f"{epochs}-{released}")
        with Checkpoints(workdir) as checkpoints:
            found = checkpoints.load_variables(checkpoints.latest)
        backbones.append(jax.tree.leaves(found["params"]["backbone"]))
        if (epochs, released) == (1, 1):
            frozen, before = backbones
            for leaf, other in zip(frozen, before, strict=True):
                np.testing.assert_array_equal(leaf, other)
    assert all(
        np.any(leaf != other) for leaf, other in zip(frozen, backbones[2], strict=True)
    )


def test_a_balanced_validation_loss_chooses_the_checkpoint(
    pretrained, cache_dir, tmp_path, monkeypatch
):
    labels = np.repeat([0, 1], [14, 4]).astype(np.int32)
    logits = np.zeros((18, 2), np.float32)
    logits[:, 1] = np.arange(18) - 9
    monkeypatch.setattr(feed, "labels", lambda parts: labels)
    measured = {"loss": 1e9, "accuracy": 0.5}
    monkeypatch.setattr(steps, "evaluate", lambda *_: (measured, logits))
    changes = {"class_balance": "weights", "model.kind": "linear", "epochs": 1}
    config = small_runs.config(cache_dir, pretrained, **changes)
    (row,) = small_runs.history(small_runs.run(config, tmp_path))
    losses = np.logaddexp(0, np.where(labels == 1, -1, 1) * logits[:, 1])
    expected = (losses[labels == 0].mean() + losses[labels == 1].mean()) / 2
    assert row["validation_loss"] == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(losses.mean(), rel=1e-2)
