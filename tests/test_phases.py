"""The configs of a grid's runs, and that every field of a grid has a meaning."""

import ast
import importlib
import inspect
from pathlib import Path

import ml_collections
import pytest

import experiments
from configs import base, finetune, grid, pretrain, table5
from configs.ablation import base as ablation
from experiments import ablate, phases
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry

ROOT = Path(experiments.__file__).parents[1]
ABLATIONS = sorted(
    path.stem
    for path in (ROOT / "configs" / "ablation").glob("*.py")
    if path.stem not in ("__init__", "base")
)


def flat(config, prefix=""):
    """Key -> value, as on the command line."""
    found = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def changed(config, other):
    config, other = flat(config), flat(other)
    assert config.keys() == other.keys()
    return {key: config[key] for key in config if config[key] != other[key]}


# Configs.


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize(
    ("phase", "module"), [("pretrain", pretrain), ("finetune", finetune)]
)
def test_nothing_given_is_the_phase_s_own_config(recipe, phase, module):
    config = grid.get_config()
    config.recipe = recipe
    argument = "xception,toy" + ",paper" * (recipe == "paper")
    made = phases.phase_config(config, phase, "xception", "toy", 5)
    assert changed(made, module.get_config(argument)) == {"seed": 5}


def test_later_values_replace_earlier_ones():
    config = grid.get_config()
    config.data.folder.dir = "faces"
    config.data.folder.num_blocks = 2
    config.data.folder.cutout_beta = 7
    config.both.epochs = 11
    config.both.augment.flip = False
    config.both.model.num_blocks = 3
    config.both.optimizer.learning_rate = 0
    config.pretrain.epochs = 12
    made = phases.phase_config(config, "pretrain", "squeezenet", "folder", 0)
    own = pretrain.get_config("squeezenet,folder")
    assert changed(made, own) == {
        "data.dir": "faces",
        "epochs": 12,
        "model.num_blocks": 3,
        "optimizer.learning_rate": 0.0,
    }
    changes = {"augment.cutout_beta": 9, "data.shots": 10}
    made = phases.phase_config(config, "finetune", "squeezenet", "folder", 0, changes)
    own = finetune.get_config("squeezenet,folder")
    assert changed(made, own) == {
        "data.dir": "faces",
        "data.shots": 10,
        "epochs": 11,
        "augment.flip": False,
        "augment.cutout_beta": 9,
        "model.num_blocks": 3,
        "optimizer.learning_rate": 0.0,
    }


# Section 4.2: N, alpha, beta.
@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("pggan", (2, 3, 5)), ("deepfakes", (4, 3, 10)), ("face2face", (4, 3, 10))],
)
def test_settings_of_the_paper_s_data_sets(dataset, expected):
    config = grid.get_config()
    config.recipe = "paper"
    made = phases.phase_config(config, "finetune", "squeezenet", dataset, 0)
    augment = made.augment
    found = (made.model.num_blocks, augment.cutout_alpha, augment.cutout_beta)
    assert found == expected


def test_a_grid_mirrors_every_field_of_a_run():
    fields = flat(base.get_config())
    for part in ("pretrain", "finetune", "both"):
        mirror = grid.get_config()[part]
        assert flat(mirror) == dict.fromkeys(fields)
        mirror.update_from_flattened_dict(fields)
        assert flat(mirror) == fields


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "papers"}, "recipe is 'papers': expected one of 'default'"),
        ({"seeds": 0}, "seeds is 0: expected a whole number, 1 or more"),
        ({"dataset": "faces,x"}, "expected BACKBONE,DATA"),
        ({"backbone": "squeezent"}, "did you mean 'squeezenet'"),
        ({"levels": "0,,3"}, "levels is '0,,3': expected different names"),
        ({"levels": ""}, "levels is '': expected different names"),
        ({"levels": "0,0"}, "levels is '0,0': expected different names"),
        ({"levels": "0,3/2"}, "levels has '3/2': expected a value for each of model"),
        ({"levels": "0,three"}, "model.num_stages is 'three': expected a value like 3"),
        ({"names": "one"}, "expected a name for each of 2 levels, found 1"),
        ({"varies": "model.stages"}, "no config key 'model.stages'"),
        ({"varies": "model"}, "no config key 'model'"),
        ({"varies": "models.num_stages"}, "no config key 'models.num_stages'"),
    ],
)
def test_mistakes(changes, message):
    config = ablation.get_config("name", "model.num_stages", "0,3")
    config.update(changes)
    with pytest.raises(UserError, match=message) as error:
        ablate.list_cells(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("epochs", "3", 3),
        ("optimizer.learning_rate", "1e-3", 0.001),
        ("augment.flip", "true", True),
        ("augment.flip", "False", False),
        ("trainable", "head", "head"),
    ],
)
def test_values(field, text, value):
    found = phases.read_value(field, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("field", "text"), [("augment.flip", "1"), ("epochs", "2.5"), ("data.shots", "")]
)
def test_what_is_no_value(field, text):
    with pytest.raises(UserError, match=f"{field} is .*: expected a value like"):
        phases.read_value(field, text)


# The config files.


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_varies_what_it_says_and_nothing_else(name):
    module = importlib.import_module(f"configs.ablation.{name}")
    config = module.get_config()
    assert config.name == name
    levels = ablate.list_levels(config)
    cells = ablate.list_cells(config)
    assert list(cells) == [ablate.BASELINE, *levels]
    own = finetune.get_config(f"{config.backbone},{config.dataset}")
    for level, fields in levels.items():
        assert list(fields) == config.varies.split("/")
        for seed, run in enumerate(cells[level]):
            allowed = fields | {"seed": seed}
            found = changed(run.config, own)
            assert found == {k: v for k, v in allowed.items() if flat(own)[k] != v}
            # One backbone for all levels of a seed.
            assert run.after == cells[ablate.BASELINE][seed].name
    assert len(
        {run.name for runs in cells.values() for run in runs}
    ) == config.seeds * (1 + len(levels))
    if config.log_axis:
        assert all(float(level) > 0 for level in levels)


def test_what_the_ablations_are():
    found = {}
    for name in ABLATIONS:
        config = importlib.import_module(f"configs.ablation.{name}").get_config()
        levels = ablate.list_levels(config).values()
        found[name] = [tuple(fields.values()) for fields in levels]
    assert found.keys() == {"table6", "stages", "blocks", "cutout", "frozen", "shots"}
    assert found["table6"] == [(0,), (3,)]
    assert found["stages"] == [(0,), (1,), (2,), (3,), (4,)]
    assert found["blocks"] == [(1,), (2,), (3,), (4,)]
    assert found["frozen"] == [("head", 0), ("head", 2), ("all", 0)]
    assert found["shots"] == [(10,), (30,), (100,), (300,), (1000,)]
    assert {(0, 5), (3, 5), (3, 10)} <= set(found["cutout"])


def test_table5_has_every_backbone():
    assert table5.get_config().backbones.split(",") == list(registry.OF_PAPER)


@pytest.mark.parametrize(
    "path", ["table5", *(f"ablation/{name}" for name in ABLATIONS)]
)
def test_a_docstring_opens_with_the_command_and_says_how_long_it_takes(path):
    module = importlib.import_module(f"configs.{path.replace('/', '.')}")
    command = "table5" if path == "table5" else "ablate"
    lines = module.__doc__.splitlines()
    assert lines[2].startswith(f"    python -m experiments.{command} --config")
    assert f"configs/{path}.py" in module.__doc__
    assert "hour" in module.__doc__ or "minutes" in module.__doc__


def test_every_field_of_a_grid_is_read_and_commented():
    read = set()
    for path in (ROOT / "experiments").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                read |= {node.attr} if node.value.id == "config" else set()
    # By the name of the phase.
    read |= {"pretrain", "finetune"}
    for module in (grid, table5, ablation):
        arguments = ("name", "epochs", "1") if module is ablation else ()
        fields = set(module.get_config(*arguments))
        assert fields <= read
        own = fields if module is grid else fields - set(grid.get_config()) | {"seeds"}
        lines = inspect.getsource(module.get_config).splitlines()
        for field in own - ({"seeds"} if module is not grid else set()):
            [at] = [
                i for i, line in enumerate(lines) if f"    config.{field} = " in line
            ]
            above = lines[at - 1].strip()
            assert above.startswith(("#", "config.")), field
