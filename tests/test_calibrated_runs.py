"""The calibration of a run: by validation alone, stored beside its checkpoints."""

import json
import shutil

import numpy as np
import pytest
import small_runs
from PIL import Image

from fdftnet_jax import datasets
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import splits
from fdftnet_jax.evaluation import calibration, scoring
from fdftnet_jax.evaluation.calibration import Options
from fdftnet_jax.run import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def run(finetuned, tmp_path):
    """A finished run that is not calibrated."""
    shutil.copytree(finetuned, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def scored(monkeypatch):
    """The splits that are scored."""
    found = []
    score = scoring.Network.score

    def told(network, dataset, split):
        found.append(split)
        return score(network, dataset, split)

    monkeypatch.setattr(scoring.Network, "score", told)
    return found


def test_it_is_that_of_the_best_checkpoint_on_validation(run, scored, capsys):
    made = calibration.for_run(Run(run))
    assert scored == ["validation"]
    scores = scoring.score_split(Run(run), "validation")
    # Twelve shots of each class.
    expected = calibration.fit(
        scores.labels, scores.logits, Options(), training_prior=0.5
    )
    assert (made.rule, made.prior) == ("eer", 0.5)
    for name in ("temperature", "threshold_logit", "validation"):
        assert getattr(made, name) == pytest.approx(getattr(expected, name), rel=1e-5)
    assert (made.num_real, made.num_fake) == (9, 9)
    with Checkpoints(run) as checkpoints:
        meta = checkpoints.load_meta()
        assert made.checkpoint_step == checkpoints.best
    assert made.checkpoint_digest == meta["digests"]["variables"]
    data = datasets.prepare(Run(run).best.lineage.data_config({}))
    assert made.fingerprint == data.fingerprint(("validation",))
    stored = json.loads((run / "calibration.json").read_text())
    assert stored == made.to_dict()
    assert "calibrated on 18 validation images" in capsys.readouterr().err


def test_it_is_made_once(run, scored, capsys):
    made = calibration.for_run(Run(run))
    assert calibration.for_run(Run(run)) == made
    assert calibration.for_run(Run(run), Options()) == made
    assert scored == ["validation"]
    # Whatever it was made with, it is taken where nothing is asked for.
    other = calibration.for_run(Run(run), Options(rule="fpr", fpr=0.2, prior=0))
    assert (other.rule, other.fpr, other.prior) == ("fpr", 0.2, 0.5)
    assert calibration.for_run(Run(run)) == other
    assert calibration.for_run(Run(run), Options("fpr", 0.2, 0)) == other
    assert len(scored) == 2
    band = calibration.for_run(Run(run), Options("band", max_wrong=0.3))
    assert calibration.for_run(Run(run), Options("band", max_wrong=0.3)) == band
    assert len(scored) == 3
    capsys.readouterr()
    other = calibration.for_run(Run(run), Options("band", max_wrong=0.02))
    assert (band.max_wrong, other.max_wrong) == (0.3, 0.02)
    told = capsys.readouterr().err
    assert "real below" in told and "warning: validation has 18 images, too few" in told
    assert len(scored) == 4


def test_it_follows_the_config_and_the_defaults_where_that_is_lost(run):
    config = json.loads((run / "config.json").read_text())
    config["calibration"] = {"rule": "fpr", "fpr": 0.3, "prior": 0.1}
    (run / "config.json").write_text(json.dumps(config))
    made = calibration.for_run(Run(run))
    assert (made.rule, made.fpr, made.prior) == ("fpr", 0.3, 0.1)
    (run / "calibration.json").unlink()
    (run / "config.json").unlink()
    assert calibration.for_run(Run(run)).rule == "eer"


@pytest.mark.parametrize("change", ["checkpoint_step", "checkpoint_digest", "text"])
def test_that_of_another_checkpoint_is_made_anew(change, run, scored):
    made = calibration.for_run(Run(run))
    path = run / "calibration.json"
    found = made.to_dict() | {"temperature": 7.0, change: 0}
    path.write_text("{" if change == "text" else json.dumps(found))
    assert calibration.for_run(Run(run)) == made
    assert json.loads(path.read_text()) == made.to_dict()
    assert len(scored) == 2


FRACTIONS = {"train": 0.4, "validation": 0.2, "test": 0.4, "finetune": 0.0}


@pytest.fixture
def photos(tmp_path):
    """60 real and 30 fake pictures, and the files of each of their splits."""
    rng = np.random.default_rng(0)
    files = {split: [] for split in splits.SPLITS}
    for label, number in (("real", 60), ("fake", 30)):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for index in range(number):
            path = folder / f"{label}{index}.png"
            patches = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
            patches.resize((40, 40), Image.Resampling.NEAREST).save(path)
            files[splits.split_of(path.stem, FRACTIONS)].append(path)
    return files


def photo_run(tmp_path, cache, **changes):
    changes |= {f"data.fractions.{split}": share for split, share in FRACTIONS.items()}
    changes |= {"data.name": "folder", "data.dir": str(tmp_path / "photos")}
    return small_runs.run(
        small_runs.config(tmp_path / cache, epochs=1, **changes),
        tmp_path / cache / "run",
    )


def test_no_test_image_is_needed_or_matters(photos, tmp_path):
    first = calibration.for_run(Run(photo_run(tmp_path, "one")))
    for path in photos["test"]:
        path.unlink()
    with pytest.warns(UserWarning, match="split 'test' .* cannot be used"):
        workdir = photo_run(tmp_path, "two")
    assert calibration.for_run(Run(workdir)) == first
    counts = [
        sum(label in p.parts for p in photos["train"]) for label in ("real", "fake")
    ]
    assert first.training_prior == counts[1] / sum(counts)
    assert first.prior == 0.5
    counts = [
        sum(label in p.parts for p in photos["validation"])
        for label in ("real", "fake")
    ]
    assert [first.num_real, first.num_fake] == counts


def test_shots_are_the_images_of_the_training(photos, tmp_path):
    fakes = sum("fake" in path.parts for path in photos["train"])
    shots = fakes + 3
    workdir = photo_run(tmp_path, "one", **{"data.shots": shots})
    found = calibration.for_run(Run(workdir)).training_prior
    assert found == fakes / (fakes + shots)


def test_data_are_needed_to_make_it_and_not_later(photos, tmp_path):
    workdir = photo_run(tmp_path, "one")
    folder, away = tmp_path / "photos", tmp_path / "away"
    for gone in (folder, photos["validation"][0], photos["train"][0]):
        gone.rename(away)
        with pytest.warns(UserWarning, match="is not calibrated, its validation") as w:
            assert calibration.for_run(Run(workdir)) is None
        assert len(w) == 1
        assert not (workdir / "calibration.json").exists()
        away.rename(gone)
    made = calibration.for_run(Run(workdir))
    shutil.rmtree(folder)
    assert calibration.for_run(Run(workdir)) == made
