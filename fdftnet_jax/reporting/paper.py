"""The results of Jeon, Bang and Woo (2020) to print beside ours, in percent.

Data sets and backbones have our names: the paper's Deepfake is `deepfakes`, its
ResNetV2 `resnet50v2`.
"""

METRICS = ("accuracy", "auc")
_BASELINE, _FDFTNET = "baseline", "FDFtNet"

# Table 5: data set -> (backbone, detector) -> accuracy, AUROC.
_TABLE5 = {
    "pggan": {
        ("squeezenet", _BASELINE): (50.00, 50.00),
        ("squeezenet", _FDFTNET): (88.89, 92.76),
        ("shallownetv3", _BASELINE): (85.73, 92.90),
        ("shallownetv3", _FDFTNET): (88.03, 94.53),
        ("resnet50v2", _BASELINE): (84.80, 88.58),
        ("resnet50v2", _FDFTNET): (84.83, 94.05),
        ("xception", _BASELINE): (87.12, 94.96),
        ("xception", _FDFTNET): (90.29, 95.98),
    },
    "deepfakes": {
        ("squeezenet", _BASELINE): (50.00, 50.00),
        ("squeezenet", _FDFTNET): (92.82, 97.61),
        ("shallownetv3", _BASELINE): (89.77, 92.81),
        ("shallownetv3", _FDFTNET): (94.29, 97.83),
        ("resnet50v2", _BASELINE): (81.52, 89.72),
        ("resnet50v2", _FDFTNET): (91.03, 96.08),
        ("xception", _BASELINE): (95.10, 98.92),
        ("xception", _FDFTNET): (97.02, 99.37),
    },
    "face2face": {
        ("squeezenet", _BASELINE): (50.00, 50.00),
        ("squeezenet", _FDFTNET): (87.73, 94.20),
        ("shallownetv3", _BASELINE): (83.35, 88.49),
        ("shallownetv3", _FDFTNET): (84.55, 93.28),
        ("resnet50v2", _BASELINE): (58.83, 62.47),
        ("resnet50v2", _FDFTNET): (85.15, 92.91),
        ("xception", _BASELINE): (85.78, 93.67),
        ("xception", _FDFTNET): (96.67, 98.23),
    },
}
# Table 6, Xception on deepfakes: M -> accuracy, AUROC.
_TABLE6 = {3: (97.02, 99.37), 0: (94.56, 98.89)}


def table5(dataset: str, backbone: str, detector: str) -> dict[str, float]:
    """Accuracy and AUROC of Table 5, empty where it has no such row.

    Args:
      dataset: 'pggan', 'deepfakes' or 'face2face'.
      backbone: a name of the registry.
      detector: 'baseline' or 'FDFtNet'.
    """
    found = _TABLE5.get(dataset, {}).get((backbone, detector), ())
    return dict(zip(METRICS, found, strict=False))


def table6(dataset: str, backbone: str, num_stages: int) -> dict[str, float]:
    """Accuracy and AUROC of FDFtNet with M stages in Table 6, empty where it has none.

    Args:
      dataset: 'deepfakes'.
      backbone: 'xception'.
      num_stages: M, 3 with the Fine-Tune Transformer and 0 without.
    """
    if (dataset, backbone) != ("deepfakes", "xception"):
        return {}
    return dict(zip(METRICS, _TABLE6.get(num_stages, ()), strict=False))
