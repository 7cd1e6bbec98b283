"""Windows at native resolution: random in training, a grid in evaluation."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from fdftnet_jax.data import images, pipeline, preprocess
from fdftnet_jax.errors import UserError


def crops(size=8, grid=3):
    return preprocess.Preprocessing(view="crops", size=size, grid=grid)


def numbered(height, width):
    """Every pixel tells where it lies: (row, column, 0)."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


def corners(windows):
    return [tuple(int(n) for n in window[0, 0, :2]) for window in windows]


def assert_whole(window, size):
    """It is one piece of the numbered image, at its own resolution."""
    top, left = window[0, 0, :2]
    rows, columns = np.indices((size, size))
    np.testing.assert_array_equal(window[..., 0], rows + top)
    np.testing.assert_array_equal(window[..., 1], columns + left)


def test_the_grid_reaches_from_edge_to_edge():
    windows = crops(size=8, grid=3)(numbered(20, 31))
    assert windows.shape == (9, 8, 8, 3) and windows.dtype == np.uint8
    # Rows 0, 6, 12 of 0..12; columns 0, 11.5, 23 of 0..23, halves to the even.
    assert corners(windows) == [(r, c) for r in (0, 6, 12) for c in (0, 12, 23)]
    for window in windows:
        assert_whole(window, 8)


def test_a_grid_of_one_is_the_centre():
    assert corners(crops(size=8, grid=1)(numbered(20, 31))) == [(6, 11)]


def test_mirrored_windows_follow_the_others():
    plain = crops(size=8, grid=2)
    mirrored = preprocess.Preprocessing(view="crops", size=8, grid=2, mirror=True)
    image = numbered(20, 31)
    windows = mirrored(image)
    np.testing.assert_array_equal(windows[:4], plain(image))
    np.testing.assert_array_equal(windows[4:], np.flip(windows[:4], axis=2))
    assert len(windows) == mirrored.number == 2 * plain.number
    assert preprocess.Preprocessing.from_dict(mirrored.to_dict()) == mirrored
    before = {k: v for k, v in plain.to_dict().items() if k != "mirror"}
    assert preprocess.Preprocessing.from_dict(before) == plain
    rng = np.random.default_rng(0)
    assert_whole(mirrored.random_view(image, rng), 8)


def test_a_mirrored_picture_has_the_same_score():
    """As the mean over the views: they are the same ones, in another order."""
    mirrored = preprocess.Preprocessing(view="crops", size=8, grid=2, mirror=True)
    image = numbered(20, 30)
    views = [{v.tobytes() for v in mirrored(i)} for i in (image, image[:, ::-1])]
    assert views[0] == views[1]


def test_random_windows_lie_anywhere():
    preprocessing = crops(size=8)
    rng = np.random.default_rng(0)
    windows = [preprocessing.random_view(numbered(11, 10), rng) for _ in range(200)]
    for window in windows:
        assert_whole(window, 8)
    assert set(corners(windows)) == {(r, c) for r in range(4) for c in range(3)}


def test_smaller_windows_train():
    """They lie anywhere in what is scored, which stays as large as it was."""
    scored = crops(size=16, grid=1)
    preprocessing = dataclasses.replace(scored, train_size=8)
    image = numbered(18, 17)
    np.testing.assert_array_equal(preprocessing(image), scored(image))
    rng = np.random.default_rng(0)
    windows = [preprocessing.random_view(image, rng) for _ in range(800)]
    for window in windows:
        assert_whole(window, 8)
    assert set(corners(windows)) == {(r, c) for r in range(11) for c in range(10)}
    middle = preprocessing.middle_view(image)
    assert_whole(middle, 8)
    assert corners([middle]) == [(5, 4)]
    assert preprocess.Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    spread = preprocessing.train_grid(image, 3)
    for window in spread:
        assert_whole(window, 8)
    assert corners(spread) == list(itertools.product((0, 5, 10), (0, 4, 9)))


def test_smaller_windows_are_of_an_image_as_large_as_what_is_scored():
    """A small image is enlarged alike for both: what is scored looks as in training."""
    preprocessing = preprocess.Preprocessing(view="crops", size=16, train_size=4)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    [enlarged] = preprocessing(image)
    pieces = {
        enlarged[y : y + 4, x : x + 4].tobytes() for y in range(13) for x in range(13)
    }
    rng = np.random.default_rng(1)
    drawn = [preprocessing.random_view(image, rng) for _ in range(50)]
    assert {window.tobytes() for window in drawn} <= pieces
    assert {window.tobytes() for window in preprocessing.train_grid(image, 3)} <= pieces


@pytest.mark.parametrize(
    ("view", "train_size"),
    [("crops", 17), ("crops", -1), ("crops", 8.0), ("resize", 8)],
)
def test_a_wrong_size_of_the_windows_that_train(view, train_size):
    with pytest.raises(UserError, match="train_size to be a whole number from 0 to"):
        preprocess.Preprocessing(view=view, size=16, train_size=train_size)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (1, 30)])
def test_a_smaller_image_is_enlarged_in_proportion(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[:, shape[1] // 2 :] = 200
    windows = crops(size=16, grid=4)(pixels)
    assert windows.shape == (16, 16, 16, 3)
    ratio = 16 / min(shape)
    expected = Image.fromarray(pixels).resize(
        (max(16, round(shape[1] * ratio)), max(16, round(shape[0] * ratio))),
        Image.Resampling.BILINEAR,
    )
    np.testing.assert_array_equal(windows[0], np.array(expected)[:16, :16])


def test_an_image_of_the_right_size_is_its_only_window():
    pixels = numbered(8, 8)
    np.testing.assert_array_equal(crops(grid=2)(pixels), np.stack([pixels] * 4))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(crops().random_view(pixels, rng), pixels)


def test_a_resized_image_has_one_view():
    preprocessing = preprocess.Preprocessing(size=8)
    pixels = numbered(20, 31)
    found = preprocessing.random_view(pixels, np.random.default_rng(0))
    np.testing.assert_array_equal(found, preprocessing(pixels))


@pytest.mark.parametrize("grid", [0, -1, 1.5])
def test_a_wrong_grid(grid):
    with pytest.raises(UserError, match="grid to be a positive whole number"):
        preprocess.Preprocessing(view="crops", grid=grid)


def test_the_size_of_a_png():
    pixels = numbered(20, 31)
    assert images.png_size(images.encode_png(pixels)) == (31, 20)
    with Image.open(io.BytesIO(images.encode_png(pixels))) as image:
        assert images.png_size(images.encode_png(pixels)) == image.size


def batches(seed, number, **options):
    records = [
        {"image": images.encode_png(numbered(20, 20 + i)), "label": i % 2}
        for i in range(6)
    ]
    source = pipeline.ViewSource(records, pipeline.native)
    made = pipeline.train_batches(
        [(source, 1.0)], 4, seed, view=crops().random_view, threads=2, **options
    )
    return [next(made) for _ in range(number)]


def test_windows_are_drawn_anew_and_follow_the_place_in_the_run():
    whole = batches(0, 12)
    for batch in whole:
        assert batch["image"].shape == (4, 8, 8, 3)
        for window in batch["image"]:
            assert_whole(window, 8)
    drawn = {i: set() for i in range(6)}
    for batch in whole:
        for index, corner in zip(batch["index"], corners(batch["image"]), strict=True):
            drawn[int(index)].add(corner)
    # Eight epochs: as good as never the same window in most of them.
    assert all(len(found) > 4 for found in drawn.values())
    later = batches(0, 5, start_step=7)
    for batch, expected in zip(later, whole[7:], strict=True):
        np.testing.assert_array_equal(batch["image"], expected["image"])
    shares = [batches(0, 12, process_index=p, process_count=2) for p in (0, 1)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([share[step]["image"] for share in shares])
        np.testing.assert_array_equal(joined, batch["image"])
    assert corners(batches(1, 1)[0]["image"]) != corners(whole[0]["image"])
