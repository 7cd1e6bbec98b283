import csv
import hashlib
import json
import shutil
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_runs
from PIL import Image
from scipy import special

from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import images, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import results, scoring
from fdftnet_jax.models import registry
from fdftnet_jax.records import Lineage, TrainedOn
from fdftnet_jax.run import Run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 5 real and 7 fake pictures of several sizes and types."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for name in (
        *(f"real/{i}.png" for i in range(5)),
        *(f"fake/gan/{i}.png" for i in range(4)),
        *(f"fake/swap/{i}.jpg" for i in range(3)),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.integers(20, 90, 2)
        # Large patches, so that the scores differ from one picture to the next.
        patches = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        patches.resize(size, Image.Resampling.NEAREST).save(path, quality=95)
    return folder


def forward(workdir, files):
    """Logits [n, 2] of the best checkpoint, one image file at a time."""
    with Checkpoints(workdir) as checkpoints:
        meta, variables = checkpoints.load_meta(), checkpoints.load_variables()
    preprocessing = preprocess.Preprocessing(**meta["preprocessing"])
    model = registry.build(meta["model"])
    apply = jax.jit(lambda x: model.apply(variables, preprocess.scale(x), train=False))
    views = [preprocessing(images.decode(file))[None] for file in files]
    return np.concatenate([apply(view) for view in views]).astype(np.float64)


def scored(workdir, tmp_path, *arguments, **options):
    """What `score_split`, `report` and `write` leave: the report and the rows."""
    scores = scoring.score_split(Run(workdir), *arguments, **options)
    made = results.report(scores, None, resamples=10)
    report, table = results.write(made, scores, None, Run(tmp_path))
    assert report.parent == table.parent == tmp_path / "evaluation"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return report.name, json.loads(report.read_text()), table.name, rows


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_another_folder(kind, photos, cache_dir, tmp_path, request):
    workdir = request.getfixturevalue(kind)
    other = {"name": "folder", "dir": str(photos), "cache_dir": str(cache_dir)}
    # A batch of 4, so that there are several and the last is padded.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        name, report, table, rows = scored(
            workdir, tmp_path, "all", data=other, batch_size=3
        )
    short = hashlib.sha256(bytes(photos)).hexdigest()[:8]
    assert name == f"photos-{short}-all.json"
    assert table == f"photos-{short}-all_scores.csv"

    # Every image once, with its own label and score.
    expected = sorted(
        str(path.relative_to(photos)) for path in photos.rglob("*") if path.is_file()
    )
    assert sorted(row["path"] for row in rows) == expected
    names = ["path", "group", "generator", "label", "logit", "score"]
    assert list(rows[0]) == [*names, "calibrated", "verdict"]
    for row in rows:
        label, *folders, _ = row["path"].split("/")
        assert row["label"] == {"real": "0", "fake": "1"}[label]
        assert row["generator"] == (folders[0] if folders else "")
    logits = forward(workdir, [photos / row["path"] for row in rows])
    found = np.array([float(row["logit"]) for row in rows])
    assert np.ptp(found) > 1e-3
    np.testing.assert_allclose(found, logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-5)
    score = np.array([float(row["score"]) for row in rows])
    np.testing.assert_allclose(score, special.expit(found), rtol=1e-6)

    # The report is that of the table.
    label = np.array([int(row["label"]) for row in rows])
    called = score >= 0.5
    confusion = {
        "true_real": int(np.sum(~called & (label == 0))),
        "false_fake": int(np.sum(called & (label == 0))),
        "false_real": int(np.sum(~called & (label == 1))),
        "true_fake": int(np.sum(called & (label == 1))),
    }
    fake, real = found[label == 1][:, None], found[label == 0][None]
    area = np.mean((fake > real) + 0.5 * (fake == real))
    assert [row["verdict"] for row in rows] == ["fake" if c else "real" for c in called]
    assert {row["calibrated"] for row in rows} == {""}
    figures = {name: figure["value"] for name, figure in report["figures"].items()}
    assert report["schema_version"] == 3
    assert report["num_examples"] == 12 == sum(confusion.values())
    assert report["confusion"] == confusion
    assert figures["accuracy"] == pytest.approx(np.mean(called == (label == 1)))
    assert figures["auc"] == pytest.approx(area)
    loss = -np.log(np.where(label == 1, score, 1 - score)).mean()
    assert figures["loss"] == pytest.approx(loss, rel=1e-6)
    assert 0 <= figures["eer"] <= 1 and 0 <= figures["average_precision"] <= 1
    assert (report["dataset"], report["split"]) == ("photos", "all")
    assert report["data_directory"] == str(photos)
    with Checkpoints(workdir) as checkpoints:
        assert report["checkpoint_step"] == checkpoints.best
    environment = report["environment"]
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["device"].startswith("2 x ")
    assert environment.keys() == {
        "python",
        "versions",
        "device",
        "flags",
        "git_commit",
    }


def test_the_split_of_the_run_itself(pretrained, tmp_path):
    name, report, _, rows = scored(pretrained, tmp_path)
    assert name == "toy-both-test.json"
    assert report["data_directory"] == ""
    assert report["num_examples"] == len(rows) == 18
    assert {row["path"].split("/")[0] for row in rows} == {"test"}
    assert len({row["path"] for row in rows}) == 18


def test_all_of_the_training_data_is_warned_of(pretrained, tmp_path):
    with pytest.warns(UserWarning, match="toy-both holds the images that the detector"):
        _, report, _, _ = scored(pretrained, tmp_path, "all")
    assert report["num_examples"] == 2 * (16 + 9 + 9 + 16)


def test_all_of_the_training_folder_is_warned_of(
    photos, cache_dir, tmp_path, monkeypatch
):
    """Under another name of the same folder, too."""
    photos = shutil.copytree(photos, tmp_path / "photos")
    fractions = {"train": 0.5, "validation": 0.5, "test": 0.0, "finetune": 0.0}
    config = small_runs.config(
        cache_dir,
        epochs=1,
        **{"data.name": "folder", "data.dir": str(photos)},
        **{f"data.fractions.{split}": share for split, share in fractions.items()},
    )
    small_runs.run(config, tmp_path)
    with pytest.raises(UserError, match="'test' in photos, found train, validation"):
        scoring.score_split(Run(tmp_path), "test")
    with pytest.warns(UserWarning, match="--split=train of"):
        scoring.score_split(Run(tmp_path), "train")
    # A picture more does not make it another folder.
    shutil.copy(photos / "real/0.png", photos / "real/more.png")
    monkeypatch.chdir(tmp_path)
    other = {"name": "folder", "dir": "./photos/"}
    with pytest.warns(UserWarning, match=f"{photos} holds the images"):
        assert len(scoring.score_split(Run(tmp_path), "all", data=other).labels) == 13


def test_the_best_checkpoint_is_scored(photos, cache_dir, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        small_runs.pretend(patch, 0.2, 0.1, 0.3)
        small_runs.run(small_runs.config(cache_dir), tmp_path)
    other = {"name": "folder", "dir": str(photos)}
    scores = scoring.score_split(Run(tmp_path), "all", data=other)
    assert scores.step == 8
    files = [photos / record["path"] for record in scores.records]
    np.testing.assert_allclose(
        scores.logits, forward(tmp_path, files), rtol=1e-4, atol=1e-5
    )


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="no checkpoints in"):
        scoring.score_split(Run(tmp_path))


def test_a_folder_that_is_not_there(pretrained, tmp_path):
    other = {"name": "folder", "dir": str(tmp_path / "missing")}
    with pytest.raises(UserError, match="missing"):
        scoring.score_split(Run(pretrained), data=other)


def test_git_commit_is_unknown_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert scoring.environment()["git_commit"] == "unknown"


def test_a_folder_of_an_earlier_run_is_split_as_it_was_then(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {"name": "folder", "dir": "new", "fractions": {"finetune": 1.0}}
    own |= {"group_by": "folder", "generator_by": "folder"}
    old = {"name": "folder", "dir": "old", "fractions": {"train": 1.0}}
    lineage = Lineage(
        (
            TrainedOn(own, "", str(tmp_path / "new")),
            TrainedOn(old, "", str(tmp_path / "old")),
        )
    )

    def fractions(**data):
        return lineage.data_config(data).fractions.to_dict()

    assert fractions() == own["fractions"]
    assert fractions(name="folder", dir="new/") == own["fractions"]
    assert fractions(name="folder", dir="../" + tmp_path.name + "/old") == {"train": 1}
    assert fractions(name="folder", dir="third") == own["fractions"]
    # Rules on the paths of one folder need not fit another.
    assert lineage.data_config({"dir": "new"}).group_by == "folder"
    assert lineage.data_config({"dir": "third"}).group_by == "file"


def test_pictures_are_decoded_as_for_the_detector_s_own_training(monkeypatch):
    asked = []

    def prepare(data, **_):
        asked.append(data.decoding)
        raise UserError("enough")

    monkeypatch.setattr(scoring.datasets, "prepare", prepare)
    # The set was also read by an earlier training, in another way.
    seen = TrainedOn({"name": "toy", "decoding": "srgb"}, "0", "")
    record = SimpleNamespace(
        lineage=Lineage((seen,)),
        preprocessing=preprocess.Preprocessing(decoding="stored"),
    )
    with pytest.raises(UserError, match="enough"):
        scoring.open_data(SimpleNamespace(best=record), "test")
    assert asked == ["stored"]
