import ast
import dataclasses
import inspect
import re
from pathlib import Path

import ml_collections
import pytest

import fdftnet_jax
from configs import base, feature_probe, finetune, pretrain
from fdftnet_jax.data import augment
from fdftnet_jax.evaluation import calibration
from fdftnet_jax.models import registry
from fdftnet_jax.training import config_values, initialization

PACKAGE = Path(fdftnet_jax.__file__).parent


def flat(config, prefix=""):
    """Key -> value, as on the command line."""
    found = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def read_key(node):
    """(what is read from, name) of `x.name`, `x["name"]` and `x.get("name")`."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return node.value, node.slice.value
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "get"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        return node.func.value, node.args[0].value
    return None, None


def dotted(node, parameters):
    """A key's whole path where `node` reads one of `config` or of a section, or ''.

    A section goes on under its own name, as a parameter that is a mapping.
    """
    if isinstance(node, ast.Name):
        return node.id if node.id == "config" or node.id in parameters else None
    if isinstance(node, ast.Attribute) and node.attr == "_config":
        return "config"
    of, name = read_key(node)
    path = of and dotted(of, parameters)
    return path and f"{path}.{name}"


def reads(source):
    """The keys of a config that Python source reads."""
    found = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            mappings = {
                argument.arg
                for argument in function.args.args
                if argument.annotation
                and re.search("Config|Mapping|dict", ast.unparse(argument.annotation))
            }
            paths = {dotted(node, mappings) for node in ast.walk(function)}
            found |= {path.removeprefix("config.") for path in paths if path}
    return found


@pytest.fixture(scope="module")
def read():
    found = set().union(*(reads(p.read_text()) for p in PACKAGE.rglob("*.py")))
    # These two get a whole section as keyword arguments.
    found |= {f"augment.{a}" for a in inspect.getfullargspec(augment.augment)[4]}
    fields = dataclasses.fields(calibration.Options)
    return found | {f"calibration.{field.name}" for field in fields}


# Read as whole mappings, by split.
BY_SPLIT = ("data.fractions.", "data.limits.", "data.toy_examples.")


@pytest.mark.parametrize("key", sorted(flat(base.get_config())))
def test_every_key_is_read(key, read):
    path = key.rpartition(".")[0] if key.startswith(BY_SPLIT) else key
    assert path in read, f"nothing reads config.{key}"


def test_what_reads_a_key():
    found = reads(
        """
def train(config: ml_collections.ConfigDict):
    prepare(config.data, config["seed"])
    return model.size, other.epochs

def prepare(data: Mapping[str, Any], faces: Faces):
    return data.get("dir", ""), data["view"], faces.name
"""
    )
    assert found >= {"seed", "data.dir", "data.view"}
    assert not found & {"model.size", "other.epochs", "epochs", "faces.name", "name"}


def test_every_key_is_commented():
    """Each key, or the one that stands just above it, has a comment of its own."""
    lines = inspect.getsource(base.get_config).splitlines()
    for number, line in enumerate(lines):
        target, _, value = line.strip().partition(" = ")
        if target.startswith("config.") and "ConfigDict()" not in value:
            above = lines[number - 1].strip()
            assert above.startswith(("#", "config.")), f"{target} has no comment"


# Section 4.1 of the paper.
SECTION_4_1 = {
    "optimizer.learning_rate": 0.3,
    "optimizer.momentum": 0.9,
    "optimizer.warmup_epochs": 0.0,
    "optimizer.clip_norm": 0.0,
    "batch_size": 128,
    "epochs": 300,
    "patience": 20,
    "data.size": 64,
    "data.view": "resize",
}
PRETRAINING = {
    "model.kind": "classifier",
    "trainable": "all",
    "data.train_split": "train",
    "data.shots": 0,
    "augment.zoom": 0.0,
    "augment.rotation": 0.0,
    "augment.translation": 0,
    "augment.flip": False,
    "augment.cutout_alpha": 0,
}
FINE_TUNING = {
    "model.kind": "fdftnet",
    "trainable": "head",
    "release_epoch": 0,
    "data.replay": 0,
    "data.train_split": "finetune",
    "data.shots": 1000,
    "model.num_blocks": 2,
    "model.num_stages": 3,
    "model.first_stride": 1,
    "augment.zoom": 0.2,
    "augment.rotation": 0.2,
    "augment.translation": 2,
    "augment.flip": True,
    "augment.cutout_alpha": 3,
    "augment.cutout_beta": 5,
}

# Section 4.2: where it departs from section 4.1; `dfd` is the Deepfake set of its text.
SECTION_4_2 = {
    name: {"model.num_blocks": 4, "augment.cutout_beta": 10}
    for name in ("deepfakes", "face2face", "dfd")
}
# Table 4: images for training, validation and test.
TABLE_4 = {
    "pggan": [128404, 32100, 37566],
    "deepfakes": [60000, 18000, 20000],
    "face2face": [60000, 18000, 20000],
}


@pytest.mark.parametrize("module", [pretrain, finetune])
@pytest.mark.parametrize("paper", ["", ",paper"])
@pytest.mark.parametrize("data", base.DATA)
def test_sizes_of_the_paper_s_sets_are_those_of_table_4(module, paper, data):
    config = module.get_config(f"xception,{data}{paper}").data
    sizes = TABLE_4.get("deepfakes" if data == "dfd" else data, [0, 0, 0])
    limits = [config.limits[split] for split in ("train", "validation", "test")]
    assert limits == sizes and config.limits.finetune == 0
    assert sum(config.fractions.values()) == pytest.approx(1)
    assert min(config.fractions.values()) > 0


@pytest.mark.parametrize(
    ("module", "own"), [(pretrain, PRETRAINING), (finetune, FINE_TUNING)]
)
@pytest.mark.parametrize("data", base.DATA)
@pytest.mark.parametrize("backbone", registry.OF_PAPER)
def test_paper_configs_follow_section_4_1(module, own, data, backbone):
    config = flat(module.get_config(f"{backbone},{data},paper"))
    expected = {
        **SECTION_4_1,
        **own,
        "model.backbone": backbone,
        "data.name": data,
    }
    if module is finetune:
        expected |= SECTION_4_2.get(data, {})
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("module", [pretrain, finetune])
def test_defaults_differ_from_the_paper_only_where_they_say_so(module):
    paper = flat(module.get_config("squeezenet,toy,paper"))
    default = flat(module.get_config("squeezenet,toy"))
    assert {key for key in paper if paper[key] != default[key]} <= {
        "optimizer.learning_rate",
        "optimizer.warmup_epochs",
        "optimizer.clip_norm",
        "batch_size",
        "epochs",
        "model.num_blocks",
        "release_epoch",
        "optimizer.backbone_rate",
        "data.replay",
    }
    assert flat(module.get_config()) == default


@pytest.mark.parametrize(
    "argument",
    ["efficientnet_lite0,folder", "xception,folder,imagenet", "xception,toy,imagenet"],
)
def test_the_recipe_from_imagenet_s_weights(argument):
    """It does not freeze, warp and resize as that of the paper's backbones does."""
    config = flat(finetune.get_config(argument))
    config_values.check(finetune.get_config(argument))
    assert config["init_from"] == "imagenet"
    assert (config["data.train_size"], config["data.view"]) == (128, "crops")
    assert (config["trainable"], config["optimizer.name"]) == ("all", "adamw")
    assert not any(config[f"augment.{name}"] for name in ("zoom", "rotation"))


def test_windows_that_train_are_of_the_view_that_cuts_windows():
    config = finetune.get_config("efficientnet_lite0,folder")
    made = initialization.preprocessing(config, "minus_one_one")
    assert (made.train_side, made.size, made.number) == (128, 256, 1)
    config.data.view = "resize"
    made = initialization.preprocessing(config, "minus_one_one")
    assert (made.train_side, made.size, made.number) == (256, 256, 1)
    # The positions of a vision transformer were trained for 224 pixels.
    config = finetune.get_config("vit,folder,imagenet")
    made = initialization.preprocessing(config, "clip")
    assert (made.train_side, made.size) == (224, 224)


def test_whose_recipe_is_not_that_from_imagenet_s_weights():
    for argument in (
        *("efficientnet_lite0,toy", "efficientnet_lite0,folder,paper"),
        "xception,folder",
    ):
        config = flat(finetune.get_config(argument))
        assert (config["data.size"], config["init_from"]) == (64, "")


def test_the_recipe_from_imagenet_s_weights_has_no_pre_training():
    with pytest.raises(ValueError, match="BACKBONE,DATA,paper with DATA"):
        pretrain.get_config("xception,folder,imagenet")


# But for those that the windows of a regression meet.
AUGMENTATIONS = set(base.get_config().augment) - {"cutout_beta", "jpeg", "rescale"}


@pytest.mark.parametrize("backbone", ["squeezenet", "efficientnet_lite0", "vit"])
def test_a_feature_probe_of_every_recipe_is_frozen(backbone):
    config = feature_probe.get_config(f"{backbone},folder")
    config_values.check(config)
    assert (config.model.taps, config.trainable) == (True, "head")
    # The pictures themselves are seen as they are.
    assert not any(config.augment[name] for name in AUGMENTATIONS)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "squeezenet",
        "squeezenet,",
        "squeezenet,faces",
        "squeezenet,toy,papers",
        "squeezenet,toy,paper,more",
        "squeezenet, toy",
    ],
)
@pytest.mark.parametrize("module", [pretrain, finetune])
def test_mistakes_in_the_argument(module, argument):
    with pytest.raises(ValueError, match="expected BACKBONE,DATA") as error:
        module.get_config(argument)
    assert repr(argument) in str(error.value)
    assert "\n" not in str(error.value)
