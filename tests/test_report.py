"""The page of a run: what stands in it, that it is whole, escaped and small."""

import base64
import configparser
import dataclasses
import fnmatch
import html.parser
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import special

from fdftnet_jax import records
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.data import images, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.evaluation import calibration, results, scoring, split_metrics
from fdftnet_jax.models import explanation
from fdftnet_jax.reporting import page, report, report_images, wording
from fdftnet_jax.run import Run
from fdftnet_jax.verdicts import Thresholds

HOSTILE = "<script>alert('&')</script>\".png"
ROOT = Path(__file__).parent.parent


@dataclasses.dataclass
class Made:
    workdir: Path
    scores: scoring.Scores
    found: dict
    calibrated: records.Calibration
    text: str


def some_figure(value):
    return {"value": value, "interval": [value - 0.1, value + 0.05]}


def processed():
    """The part `robustness` of a report, of two operations."""
    names = ("auc", "tpr_at_threshold", "fpr_at_threshold")

    def of(value):
        return dict.fromkeys(names, some_figure(value))

    operation = {"title": "JPEG", "unit": "quality"}
    rows = [{"strength": 90, "figures": of(0.7)}, {"strength": 30, "figures": of(0.61)}]
    other = {"title": "blur", "unit": "pixels"}
    return {
        "clean": of(0.8),
        "operations": {
            "jpeg": operation | {"strengths": rows},
            "blur": other | {"strengths": rows[:1]},
        },
    }


@pytest.fixture(scope="module")
def made(finetuned, tmp_path_factory):
    """The report of the test split of a fine-tuned FDFtNet, with a hostile path."""
    workdir = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finetuned, workdir)
    scores = scoring.score_split(Run(workdir), "test")
    scores.records[0]["path"] = HOSTILE
    calibrated = calibration.for_run(Run(workdir))
    found = results.report(scores, calibrated, pool=True, resamples=50)
    found["robustness"] = processed()
    results.write(found, scores, calibrated, Run(workdir))
    (workdir / "evaluation" / "broken.json").write_text("[]")
    path = report.write(Run(workdir), found, scores, calibrated)
    assert path == workdir / "report.html"
    return Made(workdir, scores, found, calibrated, path.read_text())


class Reader(html.parser.HTMLParser):
    """Checks that elements nest, and keeps what they hold."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def read(made):
    return Reader(made.text)


def test_the_first_screen_says_it_in_a_sentence(made, read):
    ranking = made.scores.logits[:, 1] - made.scores.logits[:, 0]
    called = ranking >= made.calibrated.threshold_logit
    hits = round(100 * np.mean(called[made.scores.labels == 1]))
    alarms = round(100 * np.mean(called[made.scores.labels == 0]))
    sentence = rf"Of 100 fake pictures it finds {hits} \(.*\), and it calls {alarms} \("
    first = read.text.partition("Contents")[0]
    assert re.search(sentence, first)
    assert "18 pictures that it had not seen before: 9 real and 9 fake" in first
    assert wording.TOY in first
    for note in made.found["notes"]:
        assert wording.sentence(note) in first
    for question in ("positive?", "called fake?", "intervals made?"):
        assert question in first


def test_every_figure_stands_there_with_its_interval_and_meaning(made, read):
    for name, figure in made.found["figures"].items():
        title, meaning = wording.METRICS[name]
        value, interval = wording.figure(figure)
        assert f"{title} {meaning} {value} {interval}" in read.text
    for counts in (made.found["verdicts"], made.found["pooled"]["verdicts"]):
        row = f"real {counts['true_real']} {counts['false_fake']}"
        assert row in read.text
    assert "JPEG quality 30 0.6100 (0.5100 to 0.6600)" in read.text


def test_what_it_takes_to_make_it_again(made, read):
    config = (made.workdir / "config.json").read_text()
    assert " ".join(config.split()) in read.text
    for name, version in made.found["environment"]["versions"].items():
        assert f"{name} {version}" in read.text
    with Checkpoints(made.workdir) as checkpoints:
        assert checkpoints.load_meta()["digests"]["variables"] in read.text
    assert "toy-both-test.json 18" in read.text and "broken.json" not in read.text


def test_gammas_and_maps_of_each_stage(made, read):
    with Checkpoints(made.workdir) as checkpoints:
        (gamma,) = explanation.gammas(checkpoints.load_variables())
    assert f"1 16 x 16 {gamma:+.4f}" in read.text
    maps = [a for tag, a in read.elements if "attention of" in a.get("alt", "")]
    assert 1 <= len(maps) <= 8
    data = base64.b64decode(maps[0]["src"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (16, 16)


def test_every_image_and_plot_has_its_text_and_nothing_is_loaded(made, read):
    pictures = [a for tag, a in read.elements if tag == "img"]
    assert all(a["alt"].strip() for a in pictures)
    assert all(a["src"].startswith("data:image/") for a in pictures)
    svg = [a for a in pictures if "svg" in a["src"]]
    # The verdict, four plots of the scores, the robustness, the training.
    assert len(svg) == 7
    assert not [tag for tag, _ in read.elements if tag in ("script", "iframe")]
    links = [a["href"] for tag, a in read.elements if "href" in a]
    assert all(link.startswith(("#", "data:")) for link in links)
    anchors = [a["id"] for _, a in read.elements if "id" in a]
    assert len(set(anchors)) == len(anchors)
    assert {link[1:] for link in links if link[0] == "#"} <= set(anchors)
    heads = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert heads[0] == 1 and set(heads[1:]) == {2}
    assert ("html", {"lang": "en"}) in read.elements
    assert len(made.text) < 1e6


def test_paths_are_escaped(made, read):
    assert "<script" not in made.text
    assert HOSTILE in read.text


def test_a_band_is_said_on_the_first_screen_and_counted(made, tmp_path):
    low, high = np.quantile(split_metrics.Rows.of(made.scores).ranking, [0.3, 0.7])
    banded = dataclasses.replace(
        made.calibrated,
        rule="band",
        lower_logit=float(low),
        lower_probability=float(made.calibrated.probability(low)),
        threshold_logit=float(high),
        threshold_probability=float(made.calibrated.probability(high)),
    )
    workdir = shutil.copytree(made.workdir, tmp_path / "run")
    found = results.report(made.scores, banded, resamples=50)
    path = report.write(Run(workdir), found, made.scores, banded)
    text = Reader(path.read_text()).text
    figures, counts = found["figures"], found["verdicts"]
    assert wording.decided(figures) in text
    for name in ("share_decided", "wrong_of_decided"):
        title, meaning = wording.METRICS[name]
        assert title in text and meaning in text
        assert " ".join(wording.figure(figures[name])) in text
    assert 0 < counts["undecided_real"] + counts["undecided_fake"] < 18
    real = [counts[k] for k in ("true_real", "false_fake", "undecided_real")]
    fake = [counts[k] for k in ("false_real", "true_fake", "undecided_fake")]
    rows = f"undecided real {' '.join(map(str, real))} fake {' '.join(map(str, fake))}"
    assert f"what it is called real called fake {rows}" in text
    below = f"{100 * banded.lower_probability:.2f} %"
    assert f"It is called real where that is below {below}" in text
    # An undecided image is not wrong.
    wrong = counts["false_real"] + counts["false_fake"]
    assert f"{wrong} of 18 images are called what they are not" in text
    assert re.search("(real|fake), undecided", text)


def test_how_many_are_decided_in_words():
    found = {
        "share_decided": {"value": 0.8, "interval": [0.7, 0.9]},
        "wrong_of_decided": {"value": 0.014, "interval": None},
    }
    assert wording.decided(found) == (
        "It decides 80 (70 to 90) of 100 pictures, the rest is too close to call; of "
        "100 that it decides, 1 are called what they are not."
    )
    del found["wrong_of_decided"]
    assert wording.decided(found).endswith("too close to call.")


def test_the_most_wrong_come_first(made):
    rows = split_metrics.Rows.of(made.scores)
    threshold = made.calibrated.threshold_logit
    shown = report_images.Shown(
        made.scores, rows, made.calibrated, made.calibrated.thresholds, 2.0
    )
    preprocessing = Run(made.workdir).best.preprocessing
    (part,) = report_images.most_wrong(shown, preprocessing)
    beyond = np.where(rows.labels == 1, threshold - rows.ranking, 0)
    beyond += np.where(rows.labels == 0, rows.ranking - threshold, 0)
    order = sorted(range(18), key=lambda index: -beyond[index])
    paths = [made.scores.records[index]["path"] for index in order]
    assert [tile.path for tile in part.tiles] == paths
    worst, tile = order[0], part.tiles[0]
    label, verdict = ("fake", "real") if rows.labels[worst] else ("real", "fake")
    assert tile.title == f"{label}, called {verdict}: wrong"
    score = float(re.search(r"score ([\d.]+) %", tile.lines[0])[1])
    assert score == pytest.approx(100 * special.expit(rows.ranking[worst]), abs=0.06)
    # In the pixels that the network sees.
    data = base64.b64decode(tile.pictures[0].source.partition(",")[2])
    record = made.scores.encoded[worst]
    with Image.open(io.BytesIO(data)) as picture:
        native = Image.fromarray(images.decode_png(record["image"]))
        expected = native.resize((32, 32), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(picture, expected)


def test_a_network_without_stages_has_no_attention(made):
    rows = split_metrics.Rows.of(made.scores)
    shown = report_images.Shown(made.scores, rows, None, Thresholds(0.0, 0.0), 1.0)
    run = Run(made.workdir)
    record, variables = run.best, run.variables
    assert report_images.attention(shown, record, {"params": {}}) == []
    model = {**record.model, "kind": "linear"}
    linear = dataclasses.replace(record, model=model)
    assert report_images.attention(shown, linear, variables) == []
    without = dataclasses.replace(made.scores, encoded=None)
    shown = dataclasses.replace(shown, scores=without)
    assert report_images.attention(shown, record, variables) == []
    assert report_images.most_wrong(shown, record.preprocessing) == []


@pytest.mark.parametrize(
    ("view", "size"), [("resize", 128), ("resize", 299), ("crops", 64)]
)
def test_a_page_of_large_pictures_is_small(view, size):
    """Of noise, which no format makes smaller, at the largest sizes that are shown."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (700, 500, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png", compress_level=0)
    number = 50
    record = {"path": "p" * 200, "group": "g", "generator": "", "label": 0}
    records = [record | {"label": index % 2} for index in range(number)]
    logits = rng.normal(size=(number, 2))
    encoded = [{"image": file.getvalue()}] * number
    scores = scoring.Scores("a", "/a", "test", 1, logits, records, encoded=encoded)
    rows, thresholds = split_metrics.Rows.of(scores), Thresholds(0.0, 0.0)
    shown = report_images.Shown(scores, rows, None, thresholds, 1.0)
    preprocessing = preprocess.Preprocessing(view=view, size=size)
    parts = report_images.most_wrong(shown, preprocessing)
    assert len(parts[0].tiles) == report_images.NUM_WRONG
    # The images above maps of attention are 8 at most, of the same kind.
    assert len(page.render("a", [], [page.Section("b", parts)])) < 4e6


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0"),
        (0.004, "fewer than 1"),
        (0.016, "2"),
        (0.994, "99"),
        (0.997, "more than 99"),
        (1.0, "100"),
    ],
)
def test_shares_as_numbers_of_a_hundred(share, text):
    assert wording.per_hundred(share) == text


def test_the_verdict():
    hits = {"value": 0.93, "interval": [0.9, 0.95]}
    alarms = {"value": 0.04, "interval": [0.03, 0.06]}
    assert wording.verdict(hits, alarms) == (
        "Of 100 fake pictures it finds 93 (90 to 95), and it calls 4 (3 to 6) of 100 "
        "real ones fake."
    )
    bare = {"value": 0.5, "interval": None}
    assert wording.verdict(bare, {"value": 0.2, "interval": [0.2, 0.2]}) == (
        "Of 100 fake pictures it finds 50, and it calls 20 (20) of 100 real ones fake."
    )


def test_notes_call_figures_by_their_titles():
    note = "the same in every resample: auc, tpr_at_fpr_0.001, tpr_at_fpr_0.01"
    expected = "The same in every resample: AUROC, TPR at FPR 0.1 %, TPR at FPR 1 %."
    assert wording.sentence(note) == expected


def test_definitions_cover_all_figures(made):
    assert set(made.found["figures"]) <= set(wording.METRICS)


def test_wheels_carry_the_templates():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pattern = setup["options.package_data"]["fdftnet_jax.reporting"]
    found = list((ROOT / "fdftnet_jax/reporting/templates").iterdir())
    assert len(found) == 2
    assert all(fnmatch.fnmatch(f"templates/{path.name}", pattern) for path in found)


def test_a_full_disk(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fdftnet_jax.files.write_atomic", refuse)
    with pytest.raises(UserError, match="cannot write"):
        page.write(tmp_path / "a.html", "text")


def test_json_of_the_report_is_in_it(made, read):
    assert " ".join(json.dumps(made.found, indent=2).split()) in read.text
