"""Decoding beside scoring: the order, the batches, and what is in memory at a time."""

import numpy as np
import pytest
import stand_in
from pictures import encode, noise, photograph
from PIL import Image

from fdftnet_jax.data import preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.prediction import stream
from fdftnet_jax.prediction.inputs import Item
from fdftnet_jax.prediction.stream import Content


def seen(faces, views, value, size=2):
    if not faces:
        return Content(Item("", ""), "image", reason="none")
    made = np.zeros((faces, views, size, size, 3), np.uint8)
    made[..., 0] = value + np.arange(faces)[:, None, None, None]
    return Content(Item("", ""), "image", made, (None,) * faces)


@pytest.mark.parametrize("views", [1, 3, 9])
def test_batches_are_full_and_every_face_gets_its_own_logit(views):
    rng = np.random.default_rng(1)
    given = [
        seen(int(faces), views, int(value))
        for faces, value in zip(
            rng.integers(0, 4, 50), rng.integers(0, 200, 50), strict=True
        )
    ]
    sizes = []

    def logits(batch):
        sizes.append(len(batch))
        return batch.reshape(len(batch), -1, 3).mean(1)[:, 0].astype(np.float64)

    found = list(stream.scored(iter(given), logits, 8))
    assert [one for one, _ in found] == given
    for one, values in found:
        faces = 0 if one.views is None else len(one.views)
        expected = [one.views[i, 0, 0, 0, 0] for i in range(faces)]
        np.testing.assert_allclose(values, expected)
    # The last batch, too: another size would be compiled.
    assert set(sizes) == {max(8 // views, 1)}
    assert sum(sizes) - sum(len(one.boxes) for one in given) < sizes[0]
    few, sizes[:] = [seen(2, 1, 7), seen(0, 1, 0)], []
    assert [len(values) for _, values in stream.scored(few, logits, 8)] == [2, 0]
    assert sizes == [2]


def test_files_without_anything_to_score_do_not_wait_for_the_others():
    def endless():
        yield from (seen(0, 1, 0) for _ in range(3))
        raise AssertionError("read too far")

    found = stream.scored(endless(), lambda views: np.zeros(len(views)), 8)
    assert [len(next(found)[1]) for _ in range(3)] == [0, 0, 0]


def reader(**options):
    options = {"find": None, "video": None, **options}
    return stream.Reader(preprocess.Preprocessing(size=4), **options)


def test_a_picture_under_the_suffix_of_a_video_is_a_picture(tmp_path):
    path = tmp_path / "a.mp4"
    photograph().save(path, "PNG")
    found = reader()(Item(str(path), "video"))
    assert found.kind == "image" and found.views.shape == (1, 1, 4, 4, 3)
    assert found.boxes == (None,)


@pytest.mark.parametrize("decoding", ["srgb", "stored"])
def test_a_picture_is_decoded_as_the_detector_was_trained(tmp_path, decoding):
    path = tmp_path / "a.png"
    opacity = np.full((40, 40, 1), 200, np.uint8)
    pixels = np.concatenate([noise(40, 40), opacity], axis=-1)
    path.write_bytes(encode(Image.fromarray(pixels)))
    preprocessing = preprocess.Preprocessing(size=40, decoding=decoding)
    read = stream.Reader(preprocessing, find=None, video=None)
    colours, alpha = pixels[..., :3].astype(float), 200 / 255
    shown = colours * alpha + 255 * (1 - alpha) if decoding == "srgb" else colours
    views = read(Item(str(path), "image")).views
    np.testing.assert_allclose(views[0, 0], shown, atol=1)


def test_notes_and_pictures_without_anything_to_judge(tmp_path):
    pages, small = tmp_path / "pages.tif", tmp_path / "small.png"
    photograph().save(pages, save_all=True, append_images=[photograph()])
    photograph(31, 64).save(small)
    found = reader()(Item(str(pages), "image"))
    assert found.views is not None and found.notes == ("the first of its 2 pages",)
    found = reader()(Item(str(small), "image"))
    assert found.views is None and "nothing to judge: 64 x 31" in found.reason


def test_what_nobody_foresaw_costs_one_file_or_is_shown(tmp_path):
    path = tmp_path / "a.png"
    photograph().save(path)
    item = Item(str(path), "image")

    def broken(image):
        raise ZeroDivisionError("a\nbug " + "x" * 999)

    found = reader(find=broken)(item)
    assert found.views is None and "ZeroDivisionError: a bug" in found.reason
    assert len(found.reason) < 200
    with pytest.raises(ZeroDivisionError):
        reader(find=broken, debug=True)(item)

    def without_packages(image):
        raise UserError("install them")

    # That is no fault of the file.
    with pytest.raises(UserError, match="install"):
        reader(find=without_packages)(item)


def test_the_stand_in_is_what_it_says():
    image = np.full((5, 6, 3), (200, 0, 40), np.uint8)
    assert stand_in.StandIn().expected(image) == 10.0
