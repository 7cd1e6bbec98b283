"""The test split has no part in training: its files may come and go."""

import numpy as np
import pytest
import small_runs
from PIL import Image

from fdftnet_jax.data import splits

pytestmark = pytest.mark.slow

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


def test_without_its_files_training_is_the_same_bit_by_bit(
    photos, tmp_path, monkeypatch
):
    """Of a run from its beginning, and of one that goes on."""
    folder, test = photos
    small_runs.run(config(tmp_path / "cache", folder), tmp_path / "before")
    with monkeypatch.context() as patch, pytest.raises(small_runs.StopError):
        small_runs.stop(patch, 1, before_saving=False)
        small_runs.run(config(tmp_path / "cache", folder), tmp_path / "stopped")
    for path in test:
        path.unlink()
    for cache, workdir in (("new_cache", "after"), ("cache", "stopped")):
        with pytest.warns(UserWarning, match="split 'test' .* cannot be used"):
            small_runs.run(config(tmp_path / cache, folder), tmp_path / workdir)
        small_runs.assert_same(tmp_path / "before", tmp_path / workdir)
