import ml_collections
import pytest

from configs import base, finetune, pretrain
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.training import config_values


def changed(name, value):
    config = base.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({name: value})
    return config


@pytest.mark.parametrize(
    "config",
    [
        make(f"{backbone},{data}{paper}")
        for make in (pretrain.get_config, finetune.get_config)
        for backbone in registry.OF_PAPER
        for data in base.DATA
        for paper in ("", ",paper")
    ],
)
def test_the_configs_of_the_project_are_right(config):
    config_values.check(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, r"epochs is 0: expected a whole number, 1 or more"),
        ("epochs", 2.5, r"epochs is 2.5: expected a whole number"),
        ("epochs", "300", r"epochs is '300': expected a whole number"),
        ("epochs", True, r"epochs is True: expected a whole number"),
        ("seed", -1, r"seed is -1: .* 0 to 2147483647"),
        ("optimizer.learning_rate", float("nan"), r"is nan: expected a number, 0 or"),
        ("optimizer.learning_rate", float("inf"), r"is inf: expected a number"),
        ("optimizer.momentum", 1.5, r"is 1.5: expected a number, 0 to 1;"),
        ("augment.zoom", 1.0, r"zoom is 1.0: expected a number, 0 to 0.99"),
        ("augment.cutout_beta", 0, r"beta is 0: .*--config.augment.cutout_beta=VALUE"),
        ("data.max_rejected", 5.0, r"max_rejected is 5.0: expected a number, 0 to 1"),
        ("data.duplicates", "keep", r"'keep': expected 'error' or 'drop'"),
        ("data.limits.test", -1, r"limits.test is -1: expected a whole number, 0 or"),
        ("data.compression", "c2", r"is 'c2': expected 'raw' or 'c23' or 'c40'"),
        ("data.family", "blend", r"'both' or 'upsampled' or 'blended'"),
        ("data.view", "crop", r"'crop': expected 'resize'"),
        ("calibration.rule", "best", r"'eer' or 'fpr' or 'band'"),
        ("calibration.max_wrong", 0.5, r"0.5: expected a number"),
        ("calibration.max_wrong", 0.0, r"0.0: expected a number"),
        ("data.train_split", "test", r"'test': expected 'train' or 'finetune'"),
        ("model.kind", "net", r"'net': expected 'classifier' or 'fdftnet'"),
        ("trainable", "tail", r"'tail': expected 'head' or 'all'"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(name, value, message):
    with pytest.raises(UserError, match=message) as error:
        config_values.check(changed(name, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.l2_sp", 0.1, r"l2_sp is 0.1 with model.kind='classifier'"),
        ("optimizer.backbone_rate", 0.5, r"--config.optimizer.backbone_rate=1$"),
    ],
)
def test_a_value_that_would_do_nothing(name, value, message):
    with pytest.raises(UserError, match=message):
        config_values.check(changed(name, value))
    config = finetune.get_config()
    config.update_from_flattened_dict({name: value})
    config_values.check(config)


def test_dense_layers_fit_images_of_one_size():
    config = changed("data.train_size", 48)
    config_values.check(config)
    config.model.backbone = "shallownetv3"
    with pytest.raises(UserError, match=r"is 48 .*--config.data.train_size=0"):
        config_values.check(config)
    config.model.kind = "linear"
    config_values.check(config)


def test_whole_numbers_are_numbers():
    config_values.check(changed("optimizer.learning_rate", 1))


def test_a_config_of_ones_own_must_have_every_field():
    config = base.get_config()
    del config.optimizer.clip_norm
    with pytest.raises(UserError, match=r"has no optimizer.clip_norm: start from"):
        config_values.check(config)
    with pytest.raises(UserError, match="has no seed"):
        config_values.check(ml_collections.ConfigDict())


def test_every_number_of_the_config_has_a_range():
    """Or is checked by what it is given to: shares and sizes of splits."""
    checked = {*config_values._RANGES, *config_values._CHOICES}

    def numbers(config, prefix=""):
        for name, value in config.items():
            if isinstance(value, ml_collections.ConfigDict):
                yield from numbers(value, f"{prefix}{name}.")
            elif isinstance(value, int | float):
                yield prefix + name

    elsewhere = ("data.fractions.", "data.toy_examples.")
    missing = {n for n in numbers(base.get_config()) if not n.startswith(elsewhere)}
    assert missing <= checked
