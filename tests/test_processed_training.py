"""JPEG compression and blur as augmentation: drawn anew, and the same when resumed."""

import numpy as np
import pytest
import small_runs

from fdftnet_jax.data import images, pipeline, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.records import Lineage
from fdftnet_jax.training import config_values, feed, run_data

VIEWS = {
    "resize": preprocess.Preprocessing(size=small_runs.SIZE),
    "crops": preprocess.Preprocessing(view="crops", size=small_runs.SIZE, grid=2),
}


def made(cache_dir, view="resize", **changes):
    """A run's data, the sources of its pictures and the draw of its views."""
    config = small_runs.config(cache_dir, **{"data.view": view, **changes})
    data = run_data.prepare(config, Lineage())
    sources = feed.sources(data, config, VIEWS[view])
    return data, sources, feed.random_view(config, VIEWS[view])


def batches(made, number, seed=0, **options):
    _, (source, _), view = made
    found = pipeline.train_batches(
        [(source, 1.0)], 8, seed, threads=1, view=view, **options
    )
    return [next(found) for _ in range(number)]


def assert_same(found, expected):
    for batch, other in zip(found, expected, strict=True):
        for key in other:
            np.testing.assert_array_equal(batch[key], other[key])


@pytest.fixture(scope="module")
def processed(cache_dir):
    return made(cache_dir, **{"augment.jpeg": 0.5, "augment.blur": 0.5})


@pytest.mark.parametrize("view", VIEWS)
def test_without_it_nothing_changes(cache_dir, view):
    data, (source, _), draw = made(cache_dir, view)
    assert draw == (VIEWS[view].random_view if view == "crops" else None)
    # The batches of this version and of the one before it.
    records = data.train[0].records
    kept = pipeline.native if view == "crops" else VIEWS[view]
    expected = pipeline.train_batches(
        [(pipeline.ViewSource(records, kept), 1.0)], 8, 0, threads=1, view=draw
    )
    found = batches((data, (source, None), draw), 9)
    assert_same(found, [next(expected) for _ in range(9)])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["jpeg", "blur"])
def test_always(cache_dir, view, name):
    """All training pictures change, at their own size; those of validation do not."""
    data, (source, validation), draw = made(cache_dir, view, **{f"augment.{name}": 1.0})
    records = data.train[0].records
    whole = images.decode_png(records[0]["image"])
    assert whole.shape[0] > small_runs.SIZE
    np.testing.assert_array_equal(source[0]["image"], whole)
    for batch in batches((data, (source, validation), draw), 4):
        assert batch["image"].shape == (8, small_runs.SIZE, small_runs.SIZE, 3)
        for i, image in zip(batch["index"], batch["image"], strict=True):
            if view == "resize":
                plain = VIEWS[view](images.decode_png(records[int(i)]["image"]))
                assert 0 < np.abs(image.astype(float) - plain).mean() < 40
    records = data.validation[0].records
    expected = VIEWS[view](images.decode_png(records[3]["image"]))
    np.testing.assert_array_equal(validation[3]["image"], expected)


def test_it_comes_before_the_view(cache_dir, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "fdftnet_jax.data.corruptions.jpeg",
        lambda image, quality: seen.append(image.shape) or 255 - image,
    )
    data, _, draw = made(cache_dir, **{"augment.jpeg": 1.0})
    whole = images.decode_png(data.train[0].records[0]["image"])
    found = draw(whole, np.random.default_rng(0))
    assert seen == [whole.shape]
    np.testing.assert_array_equal(found, VIEWS["resize"](255 - whole))


def test_every_epoch_draws_anew(processed):
    """32 pictures, 4 batches an epoch: with one half each, some pictures are plain."""
    data, *_ = processed
    seen = {i: set() for i in range(32)}
    plain = 0
    for batch in batches(processed, 24):
        for i, image in zip(batch["index"], batch["image"], strict=True):
            seen[int(i)].add(image.tobytes())
            whole = images.decode_png(data.train[0].records[int(i)]["image"])
            plain += np.array_equal(image, VIEWS["resize"](whole))
    # Of 6 draws a quarter is plain; others are as good as never the same.
    assert all(len(found) >= 2 for found in seen.values())
    assert np.mean([len(found) for found in seen.values()]) > 4
    assert plain / 192 == pytest.approx(0.25, abs=0.1)


def test_a_resumed_run_and_several_processes_see_the_same(processed):
    whole = batches(processed, 12)
    assert_same(batches(processed, 5, start_step=7), whole[7:])
    shares = [batches(processed, 12, process_index=p, process_count=2) for p in (0, 1)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([share[step]["image"] for share in shares])
        np.testing.assert_array_equal(joined, batch["image"])
    other = batches(processed, 12, seed=1)
    assert any(
        not np.array_equal(a["image"], b["image"])
        for a, b in zip(whole, other, strict=True)
    )


@pytest.mark.parametrize("name", ["jpeg", "blur"])
def test_a_probability_is_none(cache_dir, name):
    for value in (-0.1, 1.1):
        config = small_runs.config(cache_dir, **{f"augment.{name}": value})
        with pytest.raises(UserError, match=rf"augment.{name} is .*number, 0 to 1"):
            config_values.check(config)
