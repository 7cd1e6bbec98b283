"""A workdir as an object: read once, and what its records say of data."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import pytest

from configs import finetune
from experiments import evaluate
from fdftnet_jax import run as run_module
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.errors import UserError
from fdftnet_jax.records import CheckpointRecord, Lineage, TrainedOn
from fdftnet_jax.run import Run


@pytest.fixture
def workdir(finetuned, tmp_path):
    return shutil.copytree(finetuned, tmp_path / "run")


def test_a_command_opens_a_run_once(workdir, monkeypatch, capsys):
    opened = []

    class Counted(Checkpoints):
        def __init__(self, directory, **options):
            opened.append(directory)
            super().__init__(directory, **options)

    monkeypatch.setattr(run_module, "Checkpoints", Counted)
    for name, value in (
        *(("_WORKDIR", str(workdir)), ("_SPLIT", "test"), ("_DATA_DIR", None)),
        *(("_DATA_NAME", None), ("_POOL", "none"), ("_ROBUSTNESS", False)),
        *(("_REPLACE", False), ("_REPORT", True)),
    ):
        monkeypatch.setattr(evaluate, name, SimpleNamespace(value=value))
    evaluate.main()
    assert opened == [workdir]
    assert (workdir / "report.html").exists()
    # A second evaluation would replace the first.
    with pytest.raises(UserError, match=r"exists; .*--replace"):
        evaluate.main()
    monkeypatch.setattr(evaluate, "_REPLACE", SimpleNamespace(value=True))
    evaluate.main()
    (evaluation,) = Run(workdir).evaluations()
    assert (evaluation.split, evaluation.own) == ("test", True)
    assert evaluation.step == Run(workdir).best_step
    assert f"AUROC{'':27}{evaluation.auc['value']:.4f}" in capsys.readouterr().out


def test_what_a_checkpoint_says_survives_its_file(workdir):
    record = Run(workdir).best
    (own, before) = record.lineage
    assert (own.kind, own.splits) == ("toy", ("finetune", "validation"))
    assert own.counts == (12, 12) and before.counts == (16, 16)
    meta = json.loads(json.dumps(record.to_dict()))
    meta["digests"] = {"variables": record.digest}
    assert CheckpointRecord.from_dict(meta) == record
    assert record.progress.best_epoch == record.progress.epoch
    latest = Run(workdir).latest()
    assert latest.progress.finished and latest.progress.epoch == 3


def data_set(directory="/faces", kind="folder", fingerprint="a"):
    """A prepared data set whose fingerprint is that of the splits asked for."""
    return SimpleNamespace(
        directory=directory,
        kind=kind,
        fingerprint=lambda splits: f"{fingerprint} {splits[0]} {splits[1]}",
    )


def trained_on(directory="/faces", kind="folder", fingerprint="a", split="train"):
    data = {"name": kind, "train_split": split}
    return TrainedOn(data, f"{fingerprint} {split} validation", directory)


def test_the_same_data_are_known_by_their_images_or_their_folder():
    # Images that were added, or a folder that was moved.
    assert trained_on().same_data(data_set())
    assert trained_on().same_data(data_set(fingerprint="b"))
    assert trained_on().same_data(data_set("/moved"))
    assert not trained_on().same_data(data_set("/moved", fingerprint="b"))
    # Another set of the same folder, and a toy of another seed, have no folder.
    dfd = trained_on("/ff", "dfd")
    assert not dfd.same_data(data_set("/ff", "face2face", "b"))
    toy = trained_on("", "toy")
    assert toy.same_data(data_set("", "toy"))
    assert not toy.same_data(data_set("", "toy", "b"))
    # Other splits are other images.
    assert trained_on("/a", split="finetune").same_data(data_set("/b"))
    assert not trained_on("/a", fingerprint="b").same_data(data_set("/b"))


def test_sets_with_the_same_real_images_overlap():
    deepfakes = trained_on("/ff", "deepfakes")
    assert deepfakes.overlaps(data_set("/ff", "face2face", "b"))
    assert not deepfakes.overlaps(data_set("/ff", "dfd", "b"))
    assert not deepfakes.overlaps(data_set("/other", "face2face", "b"))
    assert not trained_on("", "toy").overlaps(data_set("", "toy", "b"))


def test_a_lineage_begins_with_the_latest():
    old, new = trained_on("/old"), trained_on("/new")
    lineage = Lineage((old,)).after([new])
    assert lineage.latest == new and list(lineage.before) == [old]


def test_a_calibration_is_that_of_the_best_checkpoint_alone(workdir):
    from fdftnet_jax.evaluation import calibration

    made = calibration.for_run(Run(workdir))
    assert Run(workdir).calibration == made
    for other in (
        dataclasses.replace(made, checkpoint_step=made.checkpoint_step + 1),
        dataclasses.replace(made, checkpoint_digest="0" * 64),
    ):
        Run(workdir).write_calibration(other)
        assert Run(workdir).calibration is None


def test_evaluations_that_cannot_be_read_are_left_out(workdir):
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    for name, text in (("a", "["), ("b", "[]"), ("c", "{}")):
        (folder / f"{name}.json").write_text(text)
    assert Run(workdir).evaluations() == []


def test_data_of_one_name_in_two_folders_have_evaluations_of_their_own(tmp_path):
    run = Run(tmp_path)
    paths = {
        run.evaluation_path("faces", folder, "test", own=own)
        for folder, own in (("/a/faces", True), ("/b/faces", False), ("/c", False))
    }
    assert len(paths) == 3
    assert tmp_path / "evaluation" / "faces-test.json" in paths
    assert all(os.path.dirname(path) == f"{tmp_path}/evaluation" for path in paths)


@pytest.mark.parametrize(
    ("size", "ftt_size", "goes_on"),
    [(64, 64, True), (64, 0, True), (128, 64, False), (128, 0, True)],
)
def test_runs_from_before_fields_go_on_as_they_were(size, ftt_size, goes_on, tmp_path):
    """Their Fine-Tune Transformer saw images of any size as they were."""
    config = finetune.get_config("squeezenet,toy")
    config.data.size, config.data.decoding = size, "stored"
    before = json.loads(config.to_json())
    del before["data"]["decoding"], before["model"]["ftt_size"]
    del before["optimizer"]["name"], before["optimizer"]["weight_decay"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    config.model.ftt_size = ftt_size
    with Run(tmp_path) as run:
        if goes_on:
            run.check_config(config)
        else:
            with pytest.raises(UserError, match=r"model\.ftt_size: "):
                run.check_config(config)
