import base64
import io
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from fdftnet_jax import errors
from fdftnet_jax.reporting import plots


def texts(path):
    """All text of an svg file; fails unless the file is valid XML."""
    root = ET.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(element.itertext()) for element in root.iter() if element.text]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def settings():
    """Matplotlib's global settings, but the backend, which is chosen when read."""
    return {key: mpl.rcParams[key] for key in mpl.rcParams if key != "backend"}


def has_colour(image, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (image == wanted).all(axis=-1).any()


def some_curves(count):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    return {
        f"curve {i}": (labels, rng.normal(size=80) + i * labels) for i in range(count)
    }


def some_history(epochs=6):
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "validation_loss": 1 / epoch + epoch / 10,
            "validation_accuracy": 1 - 0.5 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


DRAW = {
    "roc": lambda path: plots.roc_curves(path, some_curves(2)),
    "training": lambda path: plots.training_curves(path, {"run": some_history()}),
    "sheet": lambda path: plots.contact_sheet(
        path, {"real": np.full((2, 8, 8, 3), 200, np.uint8)}
    ),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_suffix_chooses_the_format_and_nothing_global_changes(tmp_path, draw):
    before = settings()
    draw(tmp_path / "new" / "figure.png")
    draw(tmp_path / "figure.svg")
    assert pixels(tmp_path / "new" / "figure.png").std() > 0
    assert texts(tmp_path / "figure.svg")
    assert settings() == before
    with pytest.raises(errors.UserError, match=r"\.svg or \.png, found .*\.jpg"):
        draw(tmp_path / "figure.jpg")


@pytest.mark.parametrize("suffix", ["svg", "png"])
@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_same_figure_gives_the_same_bytes(tmp_path, draw, suffix):
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.{suffix}")
    first, second = (tmp_path / f"{name}.{suffix}" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "draw", [plots.roc_curves, plots.training_curves, plots.contact_sheet]
)
def test_nothing_to_draw_is_refused(tmp_path, draw):
    with pytest.raises(ValueError, match="empty"):
        draw(tmp_path / "figure.svg", {})


def test_roc_legend_gives_names_and_auroc_as_text(tmp_path):
    curves = some_curves(2) | {"_costs $5 or $6": ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])}
    plots.roc_curves(tmp_path / "roc.svg", curves)
    written = texts(tmp_path / "roc.svg")
    for name, (labels, scores) in curves.items():
        area = sklearn_metrics.roc_auc_score(labels, scores)
        assert f"AUROC {area:.3f}  {name}" in written
    assert "AUROC 0.750  _costs $5 or $6" in written
    assert any("chance" in text for text in written)


def test_roc_curve_runs_through_its_operating_points(tmp_path):
    labels, scores = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]
    plots.roc_curves(tmp_path / "roc.svg", {"a": (labels, scores)})
    svg = (tmp_path / "roc.svg").read_text()
    drawn = re.findall(rf'd="([^"]*)"[^>]*stroke: {plots.PALETTE[0].lower()}', svg)
    # The curve comes first, its sample in the legend after it.
    points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", drawn[0]), float)
    origin, corner = points[0], points[-1]
    rates = (points - origin) / (corner - origin)
    expected = [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    np.testing.assert_allclose(rates, expected, atol=1e-3)


def test_roc_curves_beyond_the_palette_differ_by_line_style(tmp_path):
    count = len(plots.PALETTE) + 1
    plots.roc_curves(tmp_path / "roc.svg", some_curves(count))
    svg = (tmp_path / "roc.svg").read_text()
    first = plots.PALETTE[0].lower()
    strokes = re.findall(rf'style="([^"]*stroke: {first}[^"]*)"', svg)
    assert len({"dasharray" in stroke for stroke in strokes}) == 2


def test_roc_of_one_class_is_a_user_error(tmp_path):
    with pytest.raises(errors.UserError, match="2 real and 0 fake"):
        plots.roc_curves(tmp_path / "roc.svg", {"a": ([0, 0], [0.1, 0.2])})


def test_long_names_stay_inside_the_figure(tmp_path):
    labels, scores = some_curves(1)["curve 0"]
    name = " ".join(["a detector with a long name"] * 4)
    plots.roc_curves(tmp_path / "roc.png", {name: (labels, scores)})
    image = pixels(tmp_path / "roc.png")
    assert (image[:, [0, 1, -2, -1]] == 255).all()


def test_training_curves_name_runs_quantities_and_units(tmp_path):
    histories = {"pre-training": some_history(), "fine-tuning": some_history(9)}
    plots.training_curves(tmp_path / "training.svg", histories)
    written = " | ".join(texts(tmp_path / "training.svg"))
    for expected in (
        "pre-training",
        "fine-tuning",
        "epoch",
        "Loss (nats)",
        "Validation accuracy",
        "training",
        "validation",
    ):
        assert expected in written
    plots.training_curves(tmp_path / "training.png", histories)
    image = pixels(tmp_path / "training.png")
    assert has_colour(image, plots.PALETTE[0]) and has_colour(image, plots.PALETTE[1])


def test_dot_marks_the_lowest_validation_loss(tmp_path):
    rows = some_history()
    best = min(rows, key=lambda row: row["validation_loss"])["epoch"]
    plots.training_curves(tmp_path / "training.svg", {"run": rows})
    svg = (tmp_path / "training.svg").read_text()
    colour = plots.PALETTE[0].lower()
    dots = re.findall(rf'<use [^>]*x="([\d.]+)"[^>]*fill: {colour}', svg)
    lines = [
        np.array(re.findall(r"[ML] ([\d.]+) [\d.]+", path), float)
        for path in re.findall(rf'd="([^"]*)"[^>]*stroke: {colour}', svg)
    ]
    curves = [line for line in lines if len(line) == len(rows)]
    assert len(curves) == 3 and len(dots) == 2
    for dot in dots:
        assert float(dot) == pytest.approx(curves[0][best - 1], abs=0.01)


@pytest.mark.parametrize(
    "rows, visible",
    [
        ([], False),
        ([{"epoch": 1, "train_loss": float("nan")}], False),
        ([{"epoch": 1, "train_loss": 0.5}], True),
        (some_history(1), True),
        ([*some_history(3), {"epoch": 4, "validation_loss": None}], True),
    ],
    ids=["none", "diverged", "one value", "one epoch", "gap"],
)
def test_incomplete_histories_are_drawn(tmp_path, rows, visible):
    plots.training_curves(tmp_path / "training.png", {"run": rows})
    image = pixels(tmp_path / "training.png")
    panels = image[: image.shape[0] * 3 // 4]
    assert has_colour(image, plots.PALETTE[0])  # the legend
    assert has_colour(panels, plots.PALETTE[0]) == visible


def checkered(count, height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize(
    "height, width, factor, per_line",
    [(64, 64, 2, 6), (32, 20, 4, 9), (150, 150, 1, 5), (900, 3, 1, 8)],
)
def test_every_pixel_appears_enlarged_in_the_sheet(
    tmp_path, height, width, factor, per_line
):
    count = 8
    images = checkered(count, height, width)
    rows = {"first": images[:1], "second": images}
    plots.contact_sheet(tmp_path / "sheet.png", rows)
    sheet = pixels(tmp_path / "sheet.png")
    found = [find(sheet, image, factor) for image in images]
    assert all(found)
    # The first image stands in both rows, the others once.
    assert [len(places) for places in found] == [2] + [1] * (count - 1)
    lines = sorted({places[-1][0] for places in found})
    assert len(lines) == -(-count // per_line)
    assert found[0][0][0] < lines[0]


def find(sheet, image, factor):
    """Top-left corners (y, x) where the enlarged image stands, pixel for pixel."""
    enlarged = np.kron(image, np.ones((factor, factor, 1), np.uint8))
    height, width, _ = enlarged.shape
    candidates = np.argwhere((sheet == enlarged[0, 0]).all(axis=-1))
    return [
        (y, x)
        for y, x in candidates.tolist()
        if np.array_equal(sheet[y : y + height, x : x + width], enlarged)
    ]


def test_svg_sheet_embeds_the_pixels_and_has_titles_as_text(tmp_path):
    images = checkered(2, 16, 16)
    plots.contact_sheet(tmp_path / "sheet.svg", {"real (toy)": images})
    assert "real (toy)" in texts(tmp_path / "sheet.svg")
    svg = (tmp_path / "sheet.svg").read_text()
    (encoded,) = re.findall(r"data:image/png;base64,\s*([^\"]+)", svg)
    embedded = pixels(io.BytesIO(base64.b64decode(encoded)))
    # Some versions store the rows from bottom to top and mirror them when drawing.
    assert any(
        find(view, images[0], 8) and find(view, images[1], 8)
        for view in (embedded, embedded[::-1])
    )


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_arrays_that_are_not_images_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match="'real' must be uint8 images"):
        plots.contact_sheet(tmp_path / "sheet.png", {"real": images})


def test_names_in_figures():
    assert plots.drawable("Ångström $x$ \n人\udcff") == "Ångström $x$ ???"
    assert plots.drawable("0123456789", 10) == "0123456789"
    assert plots.drawable("0123456789", 9) == "...456789"
