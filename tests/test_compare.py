"""The comparison of methods, from end to end, on a small backbone and toy pictures."""

import csv
import json

import numpy as np
import pytest
import small_runs
from sklearn import metrics

from configs import compare as config_file
from experiments import compare, grid
from fdftnet_jax.errors import UserError

pytestmark = pytest.mark.slow

METHODS = ("fdftnet", "full_finetune", "linear_probe")


def small_config(cache_dir, **seeds):
    config = config_file.get_config()
    config.backbone = small_runs.BACKBONE
    small = small_runs.small(cache_dir) | small_runs.NO_AUGMENTATION
    config.both.update_from_flattened_dict(small)
    config.finetune.data.shots = 12
    config.pretrain.epochs = 1
    config.finetune.epochs = 2
    config.replays = "4,0"
    config.seeds.update({method: seeds.get(method, 0) for method in config.seeds})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_dir):
    """(workdir, rows of the table) of three methods, two of them with two seeds."""
    workdir = tmp_path_factory.mktemp("compare")
    seeds = dict.fromkeys(METHODS, 2) | {"fdftnet": 1}
    runs, write = compare.prepare(small_config(cache_dir, **seeds), workdir)
    outcomes = grid.execute(runs, workdir)
    assert not grid.failures(outcomes)
    write(outcomes)
    with (workdir / "compare.csv").open() as file:
        return workdir, list(csv.DictReader(file))


def config_of(workdir, run):
    return json.loads((workdir / run / "config.json").read_text())


def scored(workdir, run, family):
    path = workdir / run / "evaluation" / f"toy-{family}-test_scores.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    labels = [int(row["label"]) for row in rows]
    return metrics.roc_auc_score(labels, [float(row["logit"]) for row in rows])


def test_there_is_a_row_for_each_method_and_replay(finished):
    _, rows = finished
    found = [(row["method"], row["replay"]) for row in rows]
    assert found == [("pre-trained", "-")] + [
        (method, replay) for replay in ("4", "-") for method in METHODS
    ]
    seeds = {row["method"]: row["seeds"] for row in rows}
    assert seeds["pre-trained"] == seeds["linear_probe"] == "2"
    assert seeds["fdftnet"] == "1"


def test_the_figures_are_those_of_the_scores(finished):
    workdir, rows = finished
    for row in rows:
        method, seeds = row["method"], range(int(row["seeds"]))
        name = "base" if method == "pre-trained" else method
        name += "-replay4" * (row["replay"] == "4")
        for title, family in (("new", "blended"), ("old", "upsampled")):
            found = [scored(workdir, f"seed{s}/{name}", family) for s in seeds]
            assert row[f"{title}: AUROC, %"].startswith(f"{100 * np.mean(found):.2f}")
            before = [scored(workdir, f"seed{s}/base", family) for s in seeds]
            if title == "old" and method != "pre-trained":
                lost = 100 * np.mean(np.subtract(before, found))
                assert float(row["forgetting, %"].split(" ")[0]) == pytest.approx(
                    lost, abs=0.006
                )
            other = f"full_finetune{'-replay4' * (row['replay'] == '4')}"
            if method in ("pre-trained", "full_finetune"):
                assert row[f"{title}: against full_finetune, %"] == "-"
                continue
            against = [scored(workdir, f"seed{s}/{other}", family) for s in seeds]
            difference, rest = row[f"{title}: against full_finetune, %"].split(" ", 1)
            assert float(difference) == pytest.approx(
                100 * np.mean(np.subtract(found, against)), abs=0.06
            )
            low, high = rest[1 : rest.index(")")].split(" to ")
            assert float(low) <= float(difference) <= float(high)


def test_the_methods_train_what_they_say(finished):
    _, rows = finished
    trained = {
        (row["method"], row["replay"]): int(row["trained"].replace(",", ""))
        for row in rows
    }
    # The backbone of tests/small_runs.py: two convolutions and a normalisation, by
    # hand; a dense layer of 16 x 2 and 2.
    backbone = 3 * 3 * 3 * 8 + 8 + 2 * 8 + 3 * 3 * 8 * 16 + 16
    for replay in ("4", "-"):
        assert trained["full_finetune", replay] == backbone + 34
        assert trained["linear_probe", replay] == 34
        assert trained["fdftnet", replay] > backbone + 34


def test_the_methods_differ_in_what_they_say_and_in_no_budget(cache_dir):
    seeds = dict.fromkeys(compare.METHODS, 1)
    cells = compare.list_cells(small_config(cache_dir, **seeds))
    assert set(cells) == {compare.Cell("pre-trained")} | {
        compare.Cell(method, replay) for replay in (4, 0) for method in compare.METHODS
    }
    for replay in (4, 0):
        found = {m: cells[compare.Cell(m, replay)][0] for m in compare.METHODS}
        configs = {method: run.config for method, run in found.items()}
        assert configs["feature_probe"].epochs == 1
        assert {c.epochs for m, c in configs.items() if m != "feature_probe"} == {2}
        assert {config.data.replay for config in configs.values()} == {replay}
        kinds = {method: config.model.kind for method, config in configs.items()}
        assert kinds == dict.fromkeys(compare.METHODS, "linear") | dict.fromkeys(
            ("fdftnet", "no_regression", "paper", "frozen"), "fdftnet"
        )
        trainable = {method: config.trainable for method, config in configs.items()}
        assert trainable == dict.fromkeys(compare.METHODS, "head") | dict.fromkeys(
            ("full_finetune", "l2_sp", "scratch"), "all"
        )
        released = {m for m, config in configs.items() if config.release_epoch}
        assert released == {"fdftnet", "no_regression"}
        pulled = {m for m, config in configs.items() if config.optimizer.l2_sp}
        assert pulled == {"l2_sp"}
        assert configs["paper"].optimizer.learning_rate == 0.3
        assert {m for m, config in configs.items() if config.new_weights} == {"scratch"}
        # New weights need the pre-training for its data alone.
        alone = {method for method, run in found.items() if not run.after}
        assert alone == ({"scratch"} if replay == 0 else set())


def test_published_weights_take_the_place_of_a_pre_training(cache_dir, tmp_path):
    config = small_config(cache_dir, **dict.fromkeys(compare.METHODS, 1))
    config.start = "imagenet"
    config.old.name, config.old.dir = "folder", "old"
    cells = compare.list_cells(config)
    assert set(cells) == {
        compare.Cell(method, replay) for replay in (4, 0) for method in compare.METHODS
    }
    for cell, (run,) in cells.items():
        assert not run.after
        assert run.config.init_from == "imagenet" * (cell.method != "scratch")
        assert run.config.data.replay_dir == "old" * (cell.replay > 0)
        assert run.scored["old"]["dir"] == "old"
        assert run.config.model.regression == (cell.method == "fdftnet")
    outcomes = {run.name: grid.Outcome() for cell in cells.values() for run in cell}
    compare.write_table(config, tmp_path, cells, outcomes)
    assert "weights of imagenet" in (tmp_path / "compare.html").read_text()


def test_what_is_replayed_beside_published_weights_is_a_folder(cache_dir):
    config = small_config(cache_dir, fdftnet=1)
    config.start = "imagenet"
    with pytest.raises(UserError, match=r"--config\.old\.dir=PATH, or"):
        compare.list_cells(config)
    config.replays = "0"
    assert set(compare.list_cells(config)) == {compare.Cell("fdftnet")}


def test_pre_training_sees_the_old_forgery_and_fine_tuning_the_new(finished):
    workdir, _ = finished
    assert config_of(workdir, "seed0/base")["data"]["family"] == "upsampled"
    for run in ("fdftnet", "fdftnet-replay4"):
        found = config_of(workdir, f"seed0/{run}")
        assert found["data"]["family"] == "blended"
        assert found["data"]["replay"] == 4 * ("replay" in run)
        assert found["init_from"] == str(workdir / "seed0" / "base")


def test_the_page_has_the_figure(finished):
    """By what it says to those who do not see it."""
    workdir, _ = finished
    text = (workdir / "compare.html").read_text()
    method = "linear_probe"
    for replay, name in (("-replay4", ", with replay"), ("", "")):
        new, old = (
            np.mean(
                [scored(workdir, f"seed{s}/linear_probe{replay}", f) for s in (0, 1)]
            )
            for f in ("blended", "upsampled")
        )
        assert f"{method}{name}: {new:.3f} new, {old:.3f} old" in text


def test_numbers_of_images_are_compared(cache_dir, tmp_path):
    """Each method with each; the table and the figure's words have their scores."""
    config = small_config(cache_dir, linear_probe=1)
    config.replays, config.shots = "0", "12,6"
    runs, write = compare.prepare(config, tmp_path)
    outcomes = grid.execute(runs, tmp_path)
    write(outcomes)
    names = [f"seed0/linear_probe-shots{shots}" for shots in (12, 6)]
    assert [run.name for run in runs] == ["seed0/base", *names]
    for name, shots in zip(names, (12, 6), strict=True):
        assert config_of(tmp_path, name)["data"]["shots"] == shots
    found = [scored(tmp_path, name, "blended") for name in names]
    with (tmp_path / "compare.csv").open() as file:
        _, *rows = csv.DictReader(file)
    assert [row["images per class, at most"] for row in rows] == ["12", "6"]
    for row, auroc in zip(rows, found, strict=True):
        assert row["new: AUROC, %"] == f"{100 * auroc:.2f}"
    words = f"linear_probe: {found[1]:.3f} with 6, {found[0]:.3f} with 12"
    page = (tmp_path / "compare.html").read_text()
    assert words in page
    # The other figure has the larger number alone.
    old = scored(tmp_path, names[0], "upsampled")
    assert f"linear_probe: {found[0]:.3f} new, {old:.3f} old" in page
    assert page.count(" new, ") == 2


def test_what_is_there_makes_a_table(cache_dir, tmp_path):
    runs, write = compare.prepare(small_config(cache_dir, fdftnet=2), tmp_path)
    nothing = {run.name: grid.Outcome() for run in runs}
    assert "# Comparison" in write(nothing)
    assert (tmp_path / "compare.csv").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replays": "some"}, "replays has 'some': expected whole numbers from 0"),
        ({"replays": ""}, "replays is ''"),
        ({"shots": "few"}, "shots has 'few': expected whole numbers"),
        ({"shots": "10,0"}, "shots has '0': expected whole numbers from 1"),
        ({"seeds.fdftnet": -1}, "--config.seeds.fdftnet=3"),
        ({}, "expected a number of seeds for each method"),
    ],
)
def test_a_comparison_of_nothing(cache_dir, changes, message):
    config = small_config(cache_dir)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        compare.list_cells(config)
