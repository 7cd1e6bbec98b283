"""What the arguments of config files mean; the fields are those of the package.

`fdftnet_jax/training/defaults.py` has every field with its default and meaning.
"""

import ml_collections

from fdftnet_jax.training.defaults import get_config

# The paper's sets: images in Table 4's train, validation and test split; and the shares
# of the groups, which are about those of the official splits, or of Table 4 for the
# 100,000 fakes of pggan, with a part of train for fine-tuning.
_PAPER_SETS = {
    "pggan": ((128_404, 32_100, 37_566), (0.64, 0.16, 0.188, 0.012)),
    "deepfakes": ((60_000, 18_000, 20_000), (0.62, 0.14, 0.14, 0.1)),
    "face2face": ((60_000, 18_000, 20_000), (0.62, 0.14, 0.14, 0.1)),
    "dfd": ((60_000, 18_000, 20_000), (0.45, 0.15, 0.2, 0.2)),
}
DATA = ("folder", "toy", *_PAPER_SETS)


def parse(
    argument: str, recipes: tuple[str, ...] = ("paper",)
) -> tuple[ml_collections.ConfigDict, str]:
    """Reads `BACKBONE,DATA[,RECIPE]`.

    Args:
      argument: of the config file.
      recipes: that the file knows beside its defaults.

    Returns:
      The config with its backbone and data set, and the recipe, '' for none.

    Raises:
      ValueError: the argument does not have that form.
    """
    backbone, *rest = argument.split(",")
    asked = [[], *([recipe] for recipe in recipes)]
    if not rest or rest[0] not in DATA or rest[1:] not in asked:
        raise ValueError(
            f"config argument {argument!r}: expected BACKBONE,DATA or "
            f"BACKBONE,DATA,{'|'.join(recipes)} with DATA one of {', '.join(DATA)}, "
            "such as squeezenet,folder"
        )
    config = get_config()
    config.model.backbone = backbone
    config.data.name = rest[0]
    if rest[0] in _PAPER_SETS:
        sizes, shares = _PAPER_SETS[rest[0]]
        splits = ("train", "validation", "test", "finetune")
        config.data.limits.update(dict(zip(splits, sizes, strict=False)))
        config.data.fractions.update(dict(zip(splits, shares, strict=True)))
    return config, "".join(rest[1:])
