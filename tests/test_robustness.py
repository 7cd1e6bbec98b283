"""A detector under image processing: its logits, its figures, table and plot."""

import json
import xml.etree.ElementTree as ET

import jax
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from experiments import evaluate
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import corruptions, images, pipeline, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import results, robustness, scoring
from fdftnet_jax.models import registry
from fdftnet_jax.reporting import plots, robustness_plot
from fdftnet_jax.run import Run

OPERATIONS = corruptions.OPERATIONS
NUMBER = 18


class Counter:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.calls = 0
        self._function = function

    def __call__(self, *arguments, **options):
        self.calls += 1
        return self._function(*arguments, **options)


@pytest.fixture(scope="module")
def scored(pretrained):
    """A tiny run's test split as it is and processed, and what that took."""
    with pytest.MonkeyPatch.context() as patch:
        scale = Counter(preprocess.scale)
        decode = Counter(pipeline.decode_png)
        patch.setattr(preprocess, "scale", scale)
        patch.setattr(pipeline, "decode_png", decode)
        dataset = scoring.open_data(Run(pretrained), "test")
        # Two batches, the second padded.
        network = scoring.Network(Run(pretrained), batch_size=10)
        scores = network.score(dataset, "test")
        before = decode.calls
        conditions = robustness.score(network, dataset, "test")
    return {
        "dataset": dataset,
        "network": network,
        "scores": scores,
        "conditions": conditions,
        "traced": scale.calls,
        "decoded": decode.calls - before,
    }


@pytest.fixture(scope="module")
def forward(pretrained):
    """Logits [n, 2] of views, without the package's scoring."""
    with Checkpoints(pretrained) as checkpoints:
        meta, variables = checkpoints.load_meta(), checkpoints.load_variables()
    model = registry.build(meta["model"])
    view = preprocess.Preprocessing(**meta["preprocessing"])
    apply = jax.jit(lambda x: model.apply(variables, preprocess.scale(x), train=False))
    return lambda whole: np.asarray(apply(np.stack([view(image) for image in whole])))


@pytest.fixture(scope="module")
def whole(scored):
    """The pictures at their own size."""
    records = scored["dataset"].source("test")
    return [images.decode_png(records[i]["image"]) for i in range(NUMBER)]


def test_every_condition_has_its_logits(scored):
    found = scored["conditions"]
    assert {name: tuple(rows) for name, rows in found.items()} == {
        name: operation.strengths for name, operation in OPERATIONS.items()
    }
    every = [logits for rows in found.values() for logits in rows.values()]
    assert len(every) == 16
    for i, logits in enumerate(every):
        assert logits.shape == (NUMBER, 2) and np.isfinite(logits).all()
        for other in (scored["scores"].logits, *every[:i]):
            assert not np.array_equal(logits, other)


def test_the_network_is_compiled_and_the_pictures_are_decoded_once(scored):
    assert scored["traced"] == 1
    # (That of the padding's shape may be read by two threads at the same time.)
    assert NUMBER <= scored["decoded"] <= NUMBER + 4


@pytest.mark.parametrize(
    ("name", "strength"), [("jpeg", 30), ("rescale", 0.5), ("noise", 20)]
)
def test_logits_are_those_of_pictures_processed_by_hand(
    scored, forward, whole, name, strength
):
    functions = {
        "jpeg": lambda image, i: corruptions.jpeg(image, strength),
        "rescale": lambda image, i: corruptions.rescale(image, strength),
        "noise": lambda image, i: corruptions.noise(image, strength, seed=0, index=i),
    }
    processed = [functions[name](image, i) for i, image in enumerate(whole)]
    expected = forward(processed)
    found = scored["conditions"][name][strength]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found - forward(whole)).max() > 1e-3


def test_blur_is_in_pixels_of_the_picture(scored, forward, whole):
    """As SciPy blurs it, at its own size and not at that of the network."""
    blurred = [
        ndimage.gaussian_filter(image.astype(np.float64), (2, 2, 0)) for image in whole
    ]
    expected = forward([np.rint(image).astype(np.uint8) for image in blurred])
    found = scored["conditions"]["blur"][2]
    change = np.abs(forward(whole) - expected).max()
    assert np.abs(found - expected).max() < 0.05 * change


def test_the_same_again_without_memory_for_the_pictures(scored, monkeypatch):
    decode = Counter(pipeline.decode_png)
    monkeypatch.setattr(pipeline, "decode_png", decode)
    two = {name: OPERATIONS[name] for name in ("noise", "jpeg")}
    monkeypatch.setattr(corruptions, "OPERATIONS", two)
    found = robustness.score(
        scored["network"], scored["dataset"], "test", cache_megabytes=0
    )
    assert list(found) == ["noise", "jpeg"]
    assert decode.calls >= 9 * NUMBER
    for name, rows in found.items():
        for strength, logits in rows.items():
            np.testing.assert_array_equal(logits, scored["conditions"][name][strength])


def test_progress_counts_images_and_no_padding(scored):
    network, records = scored["network"], scored["dataset"].source("test")
    source = pipeline.ViewSource(records, network.preprocessing)
    told = []
    logits = network.logits(source, told.append)
    assert told == [10, 8]
    np.testing.assert_array_equal(logits, scored["scores"].logits)


# Figures.


@pytest.fixture(scope="module")
def report(scored):
    return results.report(
        scored["scores"], None, conditions=scored["conditions"], resamples=100
    )


def test_clean_is_the_report_itself(scored, report):
    clean = report["robustness"]["clean"]
    assert set(clean) == {"auc", "tpr_at_threshold", "fpr_at_threshold"}
    for name, figure in clean.items():
        assert figure == report["figures"][name]
    without = results.report(scored["scores"], None, resamples=100)
    assert without["robustness"] is None
    assert without["figures"] == report["figures"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_figures_of_a_condition(scored, report):
    labels = scored["scores"].labels
    for name, found in report["robustness"]["operations"].items():
        operation = OPERATIONS[name]
        assert (found["title"], found["unit"]) == (operation.title, operation.unit)
        assert [r["strength"] for r in found["strengths"]] == list(operation.strengths)
        for row in found["strengths"]:
            logits = scored["conditions"][name][row["strength"]].astype(float)
            ranking = logits[:, 1] - logits[:, 0]
            figures = row["figures"]
            auc = roc_auc_score(labels, ranking)
            assert figures["auc"]["value"] == pytest.approx(auc)
            for figure, label in (("tpr", 1), ("fpr", 0)):
                share = np.mean(ranking[labels == label] >= 0)
                assert figures[f"{figure}_at_threshold"]["value"] == share


def made(number=200, threshold=0.5):
    """The part of a report whose detector loses more the stronger it is."""
    labels = np.arange(number) % 2
    records = [
        {"path": str(i), "group": str(i), "generator": "g" * label, "label": int(label)}
        for i, label in enumerate(labels)
    ]
    drawn = np.random.default_rng(0).normal(size=number)

    def logits(distance):
        ranking = drawn + distance * (labels - 0.5)
        return np.stack([np.zeros(number), ranking], axis=1)

    scores = scoring.Scores("d", "", "test", 1, logits(3.0), records)
    conditions = {
        name: {s: logits(2.5 - i / 2) for i, s in enumerate(operation.strengths)}
        for name, operation in OPERATIONS.items()
    }
    conditions["noise"][2] = scores.logits
    return robustness.report(scores, conditions, threshold, resamples=50, seed=3)


def test_every_condition_is_judged_in_the_same_resamples():
    found = made()
    assert found["operations"]["noise"]["strengths"][0]["figures"] == found["clean"]
    blurred, compressed = (
        [row["figures"]["auc"] for row in found["operations"][name]["strengths"]]
        for name in ("blur", "jpeg")
    )
    assert blurred == compressed[:4]
    # A detector that is worse picture by picture is worse in every resample.
    for end in (0, 1):
        ends = [figure["interval"][end] for figure in compressed]
        assert ends == sorted(ends, reverse=True)


def test_the_run_s_threshold_is_kept():
    """Real pictures that move towards it are called fake more often."""
    found = made(threshold=0.5)
    assert found["clean"] != made(threshold=0.0)["clean"]
    rows = [found["clean"]]
    rows += [row["figures"] for row in found["operations"]["jpeg"]["strengths"]]
    real = [row["fpr_at_threshold"]["value"] for row in rows]
    fake = [row["tpr_at_threshold"]["value"] for row in rows]
    assert real == sorted(real) and real[-1] > real[0] + 0.1
    assert fake == sorted(fake, reverse=True)


# For people.


def test_table():
    found = made()
    lines = evaluate.robustness_lines(found)
    assert len(lines) == 3 + 4 + 16
    assert max(map(len, lines)) < 100
    clean = found["clean"]["auc"]
    low, high = clean["interval"]
    assert lines[2].startswith("  as they are ")
    assert f"  {clean['value']:.4f} [{low:.4f}, {high:.4f}]  " in lines[2]
    assert lines[3] == "  JPEG compression: quality"
    assert [line.split()[0] for line in lines[4:9]] == ["95", "90", "75", "50", "30"]
    row = found["operations"]["jpeg"]["strengths"][4]["figures"]
    shown = [float(cell) for cell in lines[8].replace("[", " [").split()[1::3]]
    assert shown == [
        pytest.approx(row[name]["value"], abs=5e-5)
        for name in ("auc", "tpr_at_threshold", "fpr_at_threshold")
    ]
    # An interval may be missing.
    row["auc"]["interval"] = None
    assert "[" not in evaluate.robustness_lines(found)[8][:34]


def test_it_is_in_the_summary(report):
    text = evaluate.summary(report)
    assert max(map(len, text.splitlines())) < 100
    for line in evaluate.robustness_lines(report["robustness"]):
        assert line in text.splitlines()
    assert "as they are" not in evaluate.summary(report | {"robustness": None})


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and returns the figure's panels."""
    figures = []
    save = plots.save

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    def draw(found):
        monkeypatch.setattr(plots, "save", keep)
        robustness_plot.draw(tmp_path / "figure.svg", found)
        return figures[-1].axes

    return draw


def test_panels_show_the_figures(drawn):
    found = made()
    panels = drawn(found)
    for axes, (name, operation) in zip(panels, OPERATIONS.items(), strict=True):
        assert axes.get_title("left") == operation.title
        assert axes.get_xlabel() == operation.unit
        rows = found["operations"][name]["strengths"]
        auc = [row["figures"]["auc"] for row in rows]
        # From the left: mild to strong.
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == [f"{s:g}" for s in operation.strengths]
        (line,) = [line for line in axes.lines if line.get_marker() == "o"]
        np.testing.assert_array_equal(line.get_xdata(), axes.get_xticks())
        assert np.all(np.diff(line.get_xdata()) > 0)
        np.testing.assert_allclose(line.get_ydata(), [a["value"] for a in auc])
        (bars,) = axes.collections
        ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
        np.testing.assert_allclose(ends, [a["interval"] for a in auc])
        level = [line.get_ydata()[0] for line in axes.lines if line.get_marker() != "o"]
        assert {0.5, found["clean"]["auc"]["value"]} <= set(level)
        low, high = axes.get_ylim()
        assert low < 0.5 and found["clean"]["auc"]["value"] < high <= 1.02
        assert axes.get_shared_y_axes().joined(axes, panels[0])


def test_the_worst_detector_stays_in_the_picture(drawn):
    found = made()
    for row in found["operations"]["blur"]["strengths"]:
        row["figures"]["auc"] = {"value": 0.01, "interval": [0.0, 0.03]}
    found["operations"]["noise"]["strengths"][0]["figures"]["auc"]["interval"] = None
    low, high = drawn(found)[0].get_ylim()
    assert -0.02 <= low < 0 and high <= 1.02


def test_files(tmp_path):
    found = made()
    for name in ("a.svg", "b.svg", "c.png"):
        robustness_plot.draw(tmp_path / name, found)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    root = ET.parse(tmp_path / "a.svg").getroot()
    text = {"".join(e.itertext()).strip() for e in root.iter() if e.text}
    clean = f"images as they are, {found['clean']['auc']['value']:.3f}"
    assert {"chance", clean, "sigma (pixels)", "0.75", "JPEG compression"} <= text
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"\.svg or \.png"):
        robustness_plot.draw(tmp_path / "figure.jpg", found)
    with pytest.raises(ValueError, match="must not be empty"):
        robustness_plot.draw(tmp_path / "d.svg", found | {"operations": {}})
