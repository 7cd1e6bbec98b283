"""Generators that are held out of a training, and what is said of them."""

import csv
import json

import numpy as np
import pytest
import small_runs
from PIL import Image
from sklearn import metrics

from configs import compare as config_file
from experiments import compare, grid
from fdftnet_jax.data import toy
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import results, scoring
from fdftnet_jax.records import Lineage
from fdftnet_jax.run import Run
from fdftnet_jax.training import loop, run_data

pytestmark = pytest.mark.slow

GENERATORS = ("blended", "negative", "upsampled")


def _picture(generator, index):
    if generator in toy.FAMILIES:
        return toy.fake_image(generator, 0, index)
    return 255 - toy.real_image(0, 1000 + index)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty fakes of each of three generators, and as many real pictures."""
    folder = tmp_path_factory.mktemp("three")
    for name in ("real", *(f"fake/{generator}" for generator in GENERATORS)):
        (folder / name).mkdir(parents=True)
    for index in range(60):
        image = Image.fromarray(toy.real_image(0, index))
        image.save(folder / "real" / f"{index}.png")
    for generator in GENERATORS:
        for index in range(20):
            image = Image.fromarray(_picture(generator, index))
            image.save(folder / "fake" / generator / f"{index}.png")
    return folder


def _config(cache_dir, folder, **changes):
    shares = {"train": 0.4, "validation": 0.3, "test": 0.3, "finetune": 0.0}
    return small_runs.config(
        cache_dir,
        **{"data.name": "folder", "data.dir": str(folder), "epochs": 1},
        **{f"data.fractions.{split}": share for split, share in shares.items()},
        **changes,
    )


def _generators(parts):
    (part,) = parts
    paths = [part.records[int(i)]["path"] for i in part.indices]
    return [path.split("/")[1] for path in paths if path.startswith("fake")]


def test_its_fakes_are_neither_trained_on_nor_validated_with(cache_dir, folder):
    every = run_data.prepare(_config(cache_dir, folder), Lineage())
    left = run_data.prepare(
        _config(cache_dir, folder, **{"data.held_out": "negative, blended"}), Lineage()
    )
    for all_parts, parts in (
        (every.train, left.train),
        (every.validation, left.validation),
    ):
        assert set(_generators(all_parts)) == set(GENERATORS)
        assert set(_generators(parts)) == {"upsampled"}
        upsampled = _generators(all_parts).count("upsampled")
        assert parts[0].counts == (all_parts[0].counts[0], upsampled)
        assert len(parts[0].indices) == sum(parts[0].counts)


def test_shots_are_drawn_from_what_is_left(cache_dir, folder):
    changes = {"data.held_out": "negative", "data.shots": 5}
    found = run_data.prepare(_config(cache_dir, folder, **changes), Lineage())
    assert found.train[0].counts == (5, 5)
    assert "negative" not in _generators(found.train)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("stylegan", "there is no 'stylegan' among the generators"),
        (",".join(GENERATORS), "no other is left among the generators"),
    ],
)
def test_mistakes(cache_dir, folder, held_out, message):
    config = _config(cache_dir, folder, **{"data.held_out": held_out})
    with pytest.raises(UserError, match=message):
        run_data.prepare(config, Lineage())


def test_an_evaluation_says_first_how_it_fares(cache_dir, folder, tmp_path):
    config = _config(cache_dir, folder, **{"data.held_out": "negative"})
    loop.train_and_evaluate(config, str(tmp_path))
    with Run(tmp_path) as run:
        scores = scoring.score_split(run, "test")
        report = results.report(scores, None, resamples=50)
    made_by = np.array([record["generator"] for record in scores.records])
    margin = scores.logits[:, 1] - scores.logits[:, 0]

    def auc(generator):
        chosen = (made_by == generator) | (scores.labels == 0)
        return metrics.roc_auc_score(scores.labels[chosen], margin[chosen])

    others = np.mean([auc("blended"), auc("upsampled")])
    change = auc("negative") - others
    note = report["notes"][0]
    assert note.startswith(
        f"never trained on: fakes of negative, whose AUROC is {auc('negative'):.3f}"
    )
    kind = "a drop of" if change < 0 else "a gain of"
    assert f"{kind} {abs(change):.3f} against the generators that were trained" in note
    assert f"({others:.3f} in the mean)" in note


def test_a_comparison_holds_out_each_in_turn(cache_dir, folder, tmp_path):
    config = config_file.get_config()
    config.backbone = small_runs.BACKBONE
    small = small_runs.small(cache_dir) | small_runs.NO_AUGMENTATION
    config.both.update_from_flattened_dict(small)
    config.pretrain.epochs = config.finetune.epochs = 1
    config.new.name, config.new.dir = "folder", str(folder)
    config.new.fractions.update(train=0.0, validation=0.2, test=0.4, finetune=0.4)
    config.old.family = "upsampled"
    config.finetune.data.shots = 12
    config.replays, config.hold_out = "0", "negative,upsampled"
    config.seeds.update({m: int(m == "linear_probe") for m in config.seeds})
    runs, write = compare.prepare(config, tmp_path)
    outcomes = grid.execute(runs, tmp_path)
    assert not grid.failures(outcomes)
    text = write(outcomes)

    def auc(run, generator):
        path = tmp_path / run / "evaluation"
        (path,) = path.glob(f"{folder.name}-*test_scores.csv")
        with path.open() as file:
            every = list(csv.DictReader(file))
        rows = [row for row in every if row["generator"] in ("", generator)]
        labels = [int(row["label"]) for row in rows]
        return metrics.roc_auc_score(labels, [float(row["logit"]) for row in rows])

    page = (tmp_path / "compare.html").read_text()
    for generator in ("negative", "upsampled"):
        name = f"seed0/linear_probe-without-{generator}"
        trained = json.loads((tmp_path / name / "config.json").read_text())
        assert trained["data"]["held_out"] == generator
        before, after = auc("seed0/base", generator), auc(name, generator)
        row = f"| {generator} | {100 * before:.2f} | {100 * after:.2f} |"
        assert row in text
        lost = f"fakes of {generator} had an AUROC of {100 * before:.2f} % before it"
        assert (lost in page) == (after - before <= -0.0005)
