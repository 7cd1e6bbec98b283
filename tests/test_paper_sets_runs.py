"""Runs on several of the paper's sets in one folder: what is scored, which splits."""

import pytest

from configs import base, pretrain
from fdftnet_jax.errors import UserError
from fdftnet_jax.records import Lineage, TrainedOn
from fdftnet_jax.training import initialization


def trained(name, directory, **fields):
    data = base.get_config().data.to_dict() | {"name": name, "dir": directory, **fields}
    return TrainedOn(data, "", directory)


def test_what_is_scored_in_a_folder_of_several_sets(tmp_path):
    root = str(tmp_path)
    tuned = trained("face2face", root, fractions={"train": 0.5, "test": 0.5})
    before = trained("dfd", root, fractions={"train": 0.25, "test": 0.75})
    other = trained("folder", str(tmp_path / "other"), group_by="folder")

    def scored(**data):
        found = Lineage((tuned, before, other)).data_config(data)
        return found.name, found.dir, found.fractions.get("train"), found.group_by

    assert scored() == scored(dir=root) == ("face2face", root, 0.5, "file")
    assert scored(name="deepfakes") == ("deepfakes", root, 0.5, "file")
    assert scored(name="dfd") == scored(name="dfd", dir=root)
    assert scored(name="dfd") == ("dfd", root, 0.25, "file")
    assert scored(dir=other.directory)[0::3] == ("folder", "folder")
    new = str(tmp_path / "new")
    assert scored(dir=new) == ("folder", new, 0.5, "file")
    assert scored(dir=new, name="pggan") == ("pggan", new, 0.5, "file")


@pytest.mark.parametrize(
    ("name", "error"), [("deepfakes", True), ("face2face", True), ("dfd", False)]
)
def test_sets_with_common_images_are_split_alike(tmp_path, name, error):
    config = pretrain.get_config(f"squeezenet,{name}")
    config.data.dir = str(tmp_path)
    run = trained("deepfakes", str(tmp_path), fractions={"train": 1.0})
    if not error:
        initialization._check_same_splits(run, config)
        return
    with pytest.raises(UserError, match="trained on the same folder split by"):
        initialization._check_same_splits(run, config)
    run.data["fractions"] = config.data.fractions.to_dict()
    initialization._check_same_splits(run, config)
