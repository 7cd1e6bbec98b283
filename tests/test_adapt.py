"""From two folders to a detector's file, on a small network and toy pictures."""

import csv
import dataclasses
import os
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
import small_runs
from PIL import Image
from scipy import special
from sklearn import metrics

from fdftnet_jax import cli
from fdftnet_jax.adaptation import adapt, tested
from fdftnet_jax.data import toy
from fdftnet_jax.detector import detector, export, file, network
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.run import Run
from fdftnet_jax.training import config_values
from fdftnet_jax.verdicts import Thresholds

EACH = 60


def _fill(folder, family, first, number=EACH):
    """`number` pictures of a family, or real ones."""
    folder.mkdir(parents=True)
    for index in range(first, first + number):
        if family == "real":
            pixels = toy.real_image(0, index)
        else:
            pixels = toy.fake_image(family, 0, index)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of a new forgery, and of an old one with real/ and fake/."""
    folder = tmp_path_factory.mktemp("pictures")
    _fill(folder / "mine" / "real", "real", 0)
    _fill(folder / "mine" / "fake", "blended", 0)
    _fill(folder / "before" / "Real", "real", 1000)
    _fill(folder / "before" / "Fake", "upsampled", 0)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory, cache_dir):
    """A detector of a small network, which knows the toy."""
    folder = tmp_path_factory.mktemp("old")
    base = small_runs.run(small_runs.config(cache_dir, epochs=1), folder / "base")
    config = small_runs.config(cache_dir, base, epochs=1)
    with Run(small_runs.run(config, folder / "tuned")) as run:
        export.write(run, folder / "old.safetensors")
    return folder / "old.safetensors"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))
        yield


def options(pictures, out, start="imagenet", **changes):
    given = {
        "real": str(pictures / "mine" / "real"),
        "fake": str(pictures / "mine" / "fake"),
        "out": str(out),
        "start": str(start),
        "epochs": 1,
    }
    return adapt.Options(**{**given, **changes})


@pytest.fixture(scope="module")
def adapted(pictures, start, tmp_path_factory):
    """(folder, what was printed) of an adaptation with an old forgery."""
    folder = tmp_path_factory.mktemp("adapted")
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *texts, **_: lines.extend(texts))
        code = adapt.adapt(
            options(
                pictures, folder / "new.safetensors", start, **_kept(pictures, folder)
            )
        )
    assert code == 0
    return folder, "\n".join(lines)


def _kept(pictures, folder):
    return {"old": (str(pictures / "before"),), "workdir": str(folder / "work")}


def _scores(folder, name):
    """Paths, labels and logits of an evaluation of the run."""
    (path,) = (folder / "work" / "run" / "evaluation").glob(f"{name}*_scores.csv")
    with path.open(newline="") as table:
        rows = list(csv.DictReader(table))
    labels = [int(row["label"]) for row in rows]
    return [row["path"] for row in rows], labels, [float(row["logit"]) for row in rows]


def test_the_file_is_the_detector_that_was_tested(adapted):
    folder, _ = adapted
    found = detector.load(folder / "new.safetensors")
    paths, _, logits = _scores(folder, "mine")
    mine = folder / "work" / "data" / "new" / "mine"
    scores = found.score([str(mine / path) for path in paths])
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.array(logits))), atol=2e-4)
    names = [data_set["folder"] for data_set in found.card["trained_on"]]
    assert names[:2] == ["mine", "old"]
    page = (folder / "new.report.html").read_text()
    assert "Report on a forgery detector" in page


def test_the_table_has_both_before_and_after(adapted, start):
    folder, printed = adapted
    known = detector.load(start)
    lines = printed.splitlines()
    for name, called in (("new/mine", "mine (new)"), ("old", "before (old)")):
        paths, labels, logits = _scores(folder, name.rpartition("/")[2])
        labels, logits = np.array(labels), np.array(logits)
        pictures = [str(folder / "work" / "data" / name / path) for path in paths]
        of_before = special.logit(known.score(pictures))
        (at,) = [i for i, line in enumerate(lines) if line.startswith(called)]
        sizes = f"{sum(labels == 0)} real and {sum(labels == 1)} fake"
        assert lines[at] == f"{called}: {sizes} test pictures"
        after = detector.load(folder / "new.safetensors")
        for line, (scores, threshold) in zip(
            lines[at + 2 : at + 4],
            ((of_before, known.threshold), (logits, after.threshold)),
            strict=True,
        ):
            auroc = metrics.roc_auc_score(labels, scores)
            alarms = np.mean(scores[labels == 0] >= threshold)
            missed = np.mean(scores[labels == 1] < threshold)
            shown = [f"{auroc:.3f}", f"{alarms:.1%}", f"{missed:.1%}"]
            assert line.split()[1:] == shown


def test_most_pictures_train_and_some_are_kept_for_the_test(adapted):
    folder, _ = adapted
    with Run(folder / "work" / "run") as run:
        lineage, config = run.best.lineage, run.config
    trained = sum(lineage.latest.counts)
    paths, _, _ = _scores(folder, "mine")
    assert 0.55 < trained / (2 * EACH) < 0.85
    assert len(paths) > 0 and trained + len(paths) <= 2 * EACH
    assert config["init_heads"] and config["class_balance"] == "weights"
    # The old pictures hold on to what it knew.
    assert config["distillation"] == 0


def test_the_same_command_again(adapted, pictures, start):
    """What is finished is not trained again; a file is replaced where that is asked."""
    folder, _ = adapted
    out, kept = folder / "new.safetensors", _kept(pictures, folder)
    with pytest.raises(UserError, match=r"new\.safetensors exists"):
        adapt.adapt(options(pictures, out, start, **kept))
    history = Run(folder / "work" / "run").history()
    known = detector.load(out).variables
    assert adapt.adapt(options(pictures, out, start, replace=True, **kept)) == 0
    assert Run(folder / "work" / "run").history() == history
    again = detector.load(out).variables
    np.testing.assert_array_equal(
        again["params"]["classifier"]["kernel"],
        known["params"]["classifier"]["kernel"],
    )


@pytest.mark.slow
def test_a_bound_on_wrong_verdicts_sets_two_thresholds(
    adapted, pictures, start, monkeypatch, capsys
):
    """Also of a run that was finished with one, and back; then with a forced file."""
    folder, _ = adapted
    kept = _kept(pictures, folder)
    out = folder / "banded.safetensors"
    assert adapt.adapt(options(pictures, out, start, max_wrong=0.1, **kept)) == 0
    card = detector.load(out).card
    assert "lower_logit" in card["threshold"]
    assert card["calibration"]["rule"] == "band"
    assert card["calibration"]["max_wrong"] == 0.1
    assert "It decides" in (folder / "banded.report.html").read_text()

    # What is forgotten keeps the file from being written.
    monkeypatch.setattr(tested, "judge", lambda *_: ["before may have lost 0.1"])
    out = folder / "forgotten.safetensors"
    assert adapt.adapt(options(pictures, out, start, **kept)) == 4
    assert not out.exists() and "--force" in capsys.readouterr().err
    assert adapt.adapt(options(pictures, out, start, force=True, **kept)) == 0
    assert "lower_logit" not in detector.load(out).card["threshold"]


def _tested(number, loss, *, old=True):
    """`number` pictures a class; before all are right, after a share of fakes wrong."""
    labels = np.repeat([0, 1], number)
    before = np.stack([np.zeros(2 * number), np.where(labels, 2.0, -2.0)], 1)
    after = before.copy()
    after[number : number + round(loss * number), 1] = -3.0
    groups = np.arange(2 * number).astype(str)
    scored = [tested.Scored(logits, Thresholds(0.0, 0.0)) for logits in (after, before)]
    return tested.Tested("set", old, labels, groups, "", *scored)


@pytest.mark.parametrize(
    ("number", "loss", "old", "forgotten"),
    [
        (200, 0.0, True, False),
        (200, 0.1, True, True),
        # A loss of 1 %, whose interval reaches beyond 2 %; with more pictures it ends
        # before.
        (200, 0.01, True, True),
        (2000, 0.01, True, False),
        (200, 0.5, False, False),
    ],
)
def test_the_bound_is_that_of_the_interval(number, loss, old, forgotten):
    found = tested.judge([_tested(number, loss, old=old)], 0.02)
    assert bool(found) == forgotten


def test_few_pictures_cannot_tell(capsys):
    assert tested.judge([_tested(99, 0.5)], 0.02) == []
    assert "99 test pictures of a class cannot tell" in capsys.readouterr().err


def test_mistakes(pictures, start, tmp_path):
    few = _fill(tmp_path / "few", "real", 0, number=3)
    (tmp_path / "empty").mkdir()
    mine = str(pictures / "mine" / "real")
    for changes, message in (
        ({"fake": str(tmp_path / "empty")}, "has 0 pictures: expected 40 or more"),
        ({"fake": str(few)}, "has 3 pictures: expected 40 or more"),
        ({"fake": mine}, "are the same folder"),
        ({"fake": str(tmp_path / "none")}, "at --fake, found no"),
        ({"old": (str(few),)}, "to hold real/ and fake/, found neither"),
        ({"start": str(few / "0.png")}, "to start from, found"),
        ({"out": str(start), "replace": True}, "is also an input"),
    ):
        given = options(pictures, tmp_path / "new.safetensors", start)
        with pytest.raises(UserError, match=message):
            adapt.adapt(dataclasses.replace(given, **changes))
    assert not (tmp_path / "new.safetensors").exists()


def test_a_workdir_of_other_folders(adapted, pictures, start):
    folder, _ = adapted
    given = {"workdir": str(folder / "work"), "real": str(pictures / "before" / "Real")}
    with pytest.raises(UserError, match="is of another adaptation"):
        adapt.adapt(options(pictures, folder / "x.safetensors", start, **given))


def test_the_command_line_gives_the_options():
    given = cli.parser().parse_args(
        [
            "adapt",
            "--real",
            "R",
            "--fake",
            "F",
            "--out",
            "O",
            "--old",
            "A",
            "--old",
            "B",
            "--from",
            "S",
            "--seed",
            "3",
            "--max-wrong",
            "0.03",
        ]
    )
    assert adapt.Options.of(given) == adapt.Options(
        "O", "R", "F", start="S", old=("A", "B"), max_wrong=0.03, seed=3
    )


def test_it_needs_the_package_alone(tmp_path):
    """The configs and experiments of a checkout are not in an installed package."""
    program = (
        "import sys\n"
        "from fdftnet_jax.adaptation import adapt, check\n"
        "print({n.split('.')[0] for n in sys.modules} & {'configs', 'experiments'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--max-forgetting=much", "a number from 0 to 1, found 'much'"),
        ("--max-forgetting=2", "a number from 0 to 1, found '2'"),
        ("--max-wrong=0.5", "a number above 0 and below 0.5, found '0.5'"),
        ("--max-wrong=0", "a number above 0 and below 0.5, found '0'"),
        ("--epochs=0", "a whole number from 1, found '0'"),
        ("--epochs=1.5", "a whole number from 1, found '1.5'"),
    ],
)
def test_values_of_options_that_cannot_be(option, message, capsys):
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["adapt", "--real=R", "--fake=F", "--out=O", option])
    assert message in capsys.readouterr().err


# Corrections, what the file tells of all this, and whether it still holds.


@pytest.fixture(scope="module")
def corrected(adapted, pictures, tmp_path_factory):
    """(folder, corrections) of a second adaptation, by corrections alone."""
    folder = tmp_path_factory.mktemp("corrected")
    wrong = _fill(folder / "wrong", "upsampled", 500, number=3)
    rows = [[str(path), "fake"] for path in sorted(wrong.iterdir())]
    with (folder / "results.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["path", "label"], *rows])
    start = adapted[0] / "new.safetensors"
    kept = _kept(pictures, folder) | {"real": "", "fake": ""}
    given = options(pictures, folder / "newer.safetensors", start, **kept)
    given = dataclasses.replace(given, corrections=str(folder / "results.csv"))
    with pytest.warns(UserWarning, match="label real pictures of the same kind"):
        assert adapt.adapt(given) == 0
    return folder, [path for path, _ in rows]


def test_corrections_are_trained_on_beside_what_is_known(corrected):
    folder, wrong = corrected
    known = detector.load(folder / "newer.safetensors").card["trained_on"][0]
    with Run(folder / "work" / "run") as run:
        digests = set(run.best.lineage.latest.counts)
    assert known["folder"] == "old" and {known["real"], known["fake"]} == digests
    links = (folder / "work" / "data" / "old" / "corrections" / "fake").iterdir()
    assert sorted(os.path.realpath(link) for link in links) == [
        os.path.realpath(path) for path in wrong
    ]


def test_the_file_tells_of_every_adaptation(adapted, corrected, start, capsys):
    folder, wrong = corrected
    first, second = detector.load(folder / "newer.safetensors").card["adaptations"]
    assert detector.load(adapted[0] / "new.safetensors").card["adaptations"] == [first]
    assert [each["name"] for each in first["sets"]] == ["mine", "before"]
    assert [each["old"] for each in first["sets"]] == [False, True]
    assert (first["corrections"], second["corrections"]) == (0, len(wrong))
    assert first["start"].startswith("tuned (") and second["start"].startswith("new (")
    # The same pictures of the old forgery are tested again, whoever trains on what.
    (again,) = second["sets"]
    (once,) = [each for each in first["sets"] if each["old"]]
    assert again["fingerprint"] == once["fingerprint"]
    for name, value in again["before"].items():
        assert value == pytest.approx(once["after"][name])
    assert cli.main(["show", str(folder / "newer.safetensors")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{second['date']} from new (" in shown
    assert f"- before (old; {again['real']} real" in shown
    page = (folder / "newer.report.html").read_text()
    assert "Each adaptation that led to this detector" in page


def test_a_check_finds_the_pictures_that_were_tested(adapted, pictures, capsys):
    folder, _ = adapted
    out = folder / "new.safetensors"
    stated = detector.load(out).card["adaptations"][0]["sets"]
    sets = [str(pictures / "mine"), str(pictures / "before")]
    assert cli.main(["check", str(out), *sets]) == 0
    told = capsys.readouterr().out
    for each in stated:
        assert f"AUROC {each['after']['auc']:.3f} on {each['real']} real" in told
    assert told.count("as its file states") == 2


def test_a_check_of_a_worse_detector(adapted, pictures, tmp_path, capsys):
    """One whose last layer has its classes exchanged, and a set that nobody knows."""
    folder, _ = adapted
    contents = file.read(folder / "new.safetensors")
    arrays = dict(contents.arrays)
    for name in ("kernel", "bias"):
        path = f"params/classifier/{name}"
        arrays[path] = arrays[path][..., ::-1].copy()
    check_logits = [row[::-1] for row in contents.card["check"]]
    worse = tmp_path / "worse.safetensors"
    file.write(worse, arrays, {**contents.card, "check": check_logits})
    (stated,) = [
        each["after"]["auc"]
        for each in contents.card["adaptations"][0]["sets"]
        if each["old"]
    ]
    before = str(pictures / "before")
    expected = 4 if 1 - stated < stated - 0.02 else 0
    assert cli.main(["check", str(worse), before]) == expected
    assert f"AUROC {1 - stated:.3f} on" in capsys.readouterr().out
    assert expected == 4, "the detector is no better than its opposite"
    assert cli.main(["check", str(worse), before, "--max-loss=1"]) == 0
    _fill(tmp_path / "set" / "real", "real", 5000)
    _fill(tmp_path / "set" / "fake", "blended", 5000)
    capsys.readouterr()
    assert cli.main(["check", str(worse), "--all", str(tmp_path / "set")]) == 0
    told = capsys.readouterr().out
    assert "on 60 real and 60 fake" in told and "states nothing" in told


def test_a_start_from_before_some_fields_existed(pictures, start, tmp_path):
    """Its network had no taps, and a Fine-Tune Transformer for images of any size."""
    contents = file.read(start)
    new = ("taps", "ftt_size", "ftt_view", "ftt_filter", "regression")
    model = {k: v for k, v in contents.card["model"].items() if k not in new}
    old = tmp_path / "old.safetensors"
    file.write(old, contents.arrays, {**contents.card, "model": model})
    config = adapt.make_config(options(pictures, "x", old), tmp_path / "work")
    # No old pictures are there: what it said before holds on to what it knew.
    assert config.init_heads and config.distillation > 0
    built = registry.build({**config.model.to_dict(), "dtype": "float32"})
    views = np.zeros((1, config.data.size, config.data.size, 3), np.float32)
    shapes = jax.eval_shape(lambda: built.init(jax.random.key(0), views, train=False))
    found = {path: leaf.shape for path, leaf in network.flat(shapes).items()}
    arrays = {k: a.shape for k, a in contents.arrays.items() if k != "stablehlo"}
    assert found == arrays


def test_a_regression_from_before_there_were_taps_of_blocks(pictures, start, tmp_path):
    """Its layer fits the features that it was fitted to, not those of today."""
    contents = file.read(start)
    model = {"kind": "linear", "backbone": "efficientnet_lite0", "variant": "torch"}
    fitted = {**contents.card["config"], "optimizer": {"name": "logistic"}}
    card = {**contents.card, "model": {**model, "taps": True}, "config": fitted}
    old = tmp_path / "old.safetensors"
    file.write(old, contents.arrays, card)
    given = dataclasses.replace(options(pictures, "x", old), epochs=0)
    config = adapt.make_config(given, tmp_path / "work")
    assert config.init_heads and config.optimizer.name == "logistic"
    assert config.model.taps and not config.model.block_taps


def test_a_regression_beside_a_network_goes_on_with_it(pictures, start, tmp_path):
    """With old pictures and without: it is pulled to what it was."""
    contents = file.read(start)
    card = dict(contents.card)
    card["model"] = card["model"] | {"regression": True}
    path = tmp_path / "both.safetensors"
    file.write(path, contents.arrays, card)
    given = options(pictures, "x", path)
    for old in ((str(pictures / "before"),), ()):
        config = adapt.make_config(
            dataclasses.replace(given, old=old), tmp_path / f"work{len(old)}"
        )
        config_values.check(config)
        assert config.init_heads and config.model.regression
        assert (config.distillation > 0) == (not old)


def test_pictures_are_cut_as_the_start_cuts_them(pictures, start, tmp_path):
    """Whether it was trained on windows of what it scores, or on all of it."""
    contents = file.read(start)
    size = contents.card["preprocessing"]["size"]
    for train_size, grid, mirror in ((0, 2, True), (size // 2, 1, False)):
        cut = {"view": "crops", "grid": grid, "mirror": mirror}
        cut["train_size"] = train_size
        card = dict(contents.card)
        card["preprocessing"] = card["preprocessing"] | cut
        path = tmp_path / f"{train_size}.safetensors"
        file.write(path, contents.arrays, card)
        config = adapt.make_config(options(pictures, "x", path), tmp_path / "work")
        data = config.data
        assert (data.size, data.view, data.train_size) == (size, "crops", train_size)
        assert (data.crop_grid, data.crop_mirror) == (grid, mirror)


@pytest.mark.parametrize(
    "few, changes, fitted",
    [
        # 60 pictures of a class, of which 42 train.
        (43, {}, True),
        (42, {}, False),
        (43, {"epochs": 1}, False),
        (43, {"method": "fdftnet"}, False),
        (42, {"method": "probe"}, True),
    ],
)
def test_few_pictures_are_learned_by_a_regression(
    few, changes, fitted, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(adapt, "_FEW", few)
    given = options(pictures, "new.safetensors", **{"epochs": 0, **changes})
    config = adapt.make_config(given, tmp_path)
    config_values.check(config)
    assert (config.optimizer.name == "logistic") == fitted
    assert config.model.block_taps == fitted
    # What is trained has the regression beside it.
    assert config.model.regression == (not fitted)


def test_a_network_that_detects_is_trained_on(pictures, start, tmp_path):
    """However few the pictures are; a pre-trained backbone, too."""
    for from_, init_heads in ((start, True), (start.parent / "base", False)):
        given = options(pictures, "new.safetensors", from_, epochs=0)
        config = adapt.make_config(given, tmp_path)
        assert (config.optimizer.name, config.init_heads) == ("adamw", init_heads)


def test_files_beside_the_pictures_do_not_count(tmp_path, monkeypatch):
    for name, family in (("real", "real"), ("fake", "blended")):
        folder = _fill(tmp_path / name, family, 0, number=4)
        for index in range(4):
            (folder / f"{index}.json").write_text("{}")
    # Of four pictures two train; of eight five would.
    monkeypatch.setattr(adapt, "_FEW", 3)
    real, fake = str(tmp_path / "real"), str(tmp_path / "fake")
    config = adapt.make_config(adapt.Options("new", real, fake), tmp_path / "work")
    assert config.optimizer.name == "logistic"


@pytest.mark.slow
def test_a_regression_on_the_features_of_a_detector(pictures, start, tmp_path, capsys):
    """Its file is tested beside that of the start, and judges pictures."""
    given = options(pictures, tmp_path / "new.safetensors", start, epochs=0)
    given = dataclasses.replace(
        given, method="probe", old=(str(pictures / "before"),), force=True
    )
    assert adapt.adapt(given) == 0
    assert "before" in capsys.readouterr().out
    made = file.read(tmp_path / "new.safetensors")
    assert made.card["model"]["kind"] == "linear"
    backbones = [
        {k: v for k, v in found.arrays.items() if k.startswith("params/backbone")}
        for found in (made, file.read(start))
    ]
    assert backbones[0]
    chex.assert_trees_all_equal(*backbones)
    # From there, few pictures are a regression again, which goes on from this one.
    again = dataclasses.replace(
        given, start=given.out, method="auto", out=str(tmp_path / "again.safetensors")
    )
    assert adapt.adapt(again) == 0
    assert f"from the coefficients in {given.out}" in capsys.readouterr().err
    assert file.read(again.out).card["model"] == made.card["model"]
    without = dataclasses.replace(again, old=())
    config = adapt.make_config(without, tmp_path / "without")
    config_values.check(config)
    assert (config.optimizer.name, config.init_heads) == ("logistic", True)
    # Where one kind of detector follows the other, it begins anew.
    for from_, fields in (
        (given.out, {"method": "fdftnet"}),
        (given.out, {"epochs": 1}),
        (start, {"method": "probe"}),
    ):
        lacking = dataclasses.replace(without, start=str(from_), **fields)
        with pytest.raises(UserError, match="give pictures of them with --old"):
            adapt.make_config(lacking, tmp_path / "lacking")
        assert not (
            adapt.make_config(
                dataclasses.replace(lacking, old=given.old), tmp_path / "anew"
            ).init_heads
        )


def test_options_that_need_others(pictures, start, tmp_path):
    mine = str(pictures / "mine" / "real")
    out = str(tmp_path / "new.safetensors")
    for given, message in (
        ({}, "--real and --fake, or --corrections, found neither"),
        ({"real": mine}, "found --real without --fake"),
        ({"fake": mine}, "found --fake without --real"),
        ({"corrections": mine}, "pictures beside --corrections"),
        ({"method": "probe", "epochs": 2}, "--method probe, which has none"),
    ):
        with pytest.raises(UserError, match=message):
            adapt.adapt(adapt.Options(out, start=str(start), **given))
