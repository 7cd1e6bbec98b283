"""The test split has no part in training: its files may come and go."""

import numpy as np
import pytest
import small_runs
from PIL import Image

from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import splits

FRACTIONS = {"train": 0.4, "validation": 0.2, "test": 0.4, "finetune": 0.0}


@pytest.fixture
def photos(tmp_path):
    """40 + 40 pictures, and those of them that fall into the test split."""
    rng = np.random.default_rng(0)
    folder, test = tmp_path / "photos", []
    for label in splits.CLASSES:
        (folder / label).mkdir(parents=True)
        for number in range(40):
            path = folder / label / f"{label}{number}.png"
            patches = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
            patches.resize((40, 40), Image.Resampling.NEAREST).save(path)
            if splits.split_of(path.stem, FRACTIONS) == "test":
                test.append(path)
    assert len(test) > 10
    return folder, test


def config(cache, folder):
    changes = {f"data.fractions.{split}": share for split, share in FRACTIONS.items()}
    changes |= {"data.name": "folder", "data.dir": str(folder)}
    return small_runs.config(cache, **changes)


def test_without_its_files_training_is_the_same_bit_by_bit(photos, tmp_path):
    folder, test = photos
    small_runs.run(config(tmp_path / "cache", folder), tmp_path / "before")
    for path in test:
        path.unlink()
    with pytest.warns(UserWarning, match="split 'test' .* cannot be used"):
        small_runs.run(config(tmp_path / "new_cache", folder), tmp_path / "after")
    small_runs.assert_same(tmp_path / "before", tmp_path / "after")


def test_a_run_goes_on_without_them(photos, tmp_path, monkeypatch):
    folder, test = photos
    small_runs.run(config(tmp_path / "cache", folder), tmp_path / "undisturbed")
    save, saved = Checkpoints.save, []

    def save_once(*arguments):
        if saved:
            raise InterruptedError
        saved.append(save(*arguments))

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Checkpoints, "save", save_once)
        small_runs.run(config(tmp_path / "cache", folder), tmp_path / "stopped")
    for path in test:
        path.unlink()
    with pytest.warns(UserWarning, match="split 'test' .* cannot be used"):
        small_runs.run(config(tmp_path / "cache", folder), tmp_path / "stopped")
    small_runs.assert_same(tmp_path / "stopped", tmp_path / "undisturbed")
