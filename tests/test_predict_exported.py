"""`fdftnet predict` with the file of a run says what the run's evaluation says."""

import dataclasses
import json
import os
import shutil

import exported
import jax.export
import numpy as np
import pytest
from PIL import Image
from stand_in import predict, rows

from fdftnet_jax import cli
from fdftnet_jax.detector import export
from fdftnet_jax.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory, finetuned):
    """A folder with the exported file, the test split as pictures, and its rows."""
    folder = tmp_path_factory.mktemp("predicted")
    workdir = shutil.copytree(finetuned, folder / "run")
    export.write(Run(workdir), folder / "detector")
    for path, pixels in exported.pictures(workdir).items():
        place = (folder / "in" / path).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return folder, exported.evaluated(workdir)


def test_scores_probabilities_and_verdicts(run, tmp_path):
    folder, evaluated = run
    out = tmp_path / "out.csv"
    assert predict(folder / "in", "--csv", out, detector=folder / "detector") == 0
    found, whole = rows(out)
    assert found == whole and len(found) == len(evaluated)
    by_path = {os.path.splitext(path)[0]: row for path, row in evaluated.items()}
    for row in found:
        path = os.path.relpath(row["path"], folder / "in")
        expected = by_path[os.path.splitext(path)[0]]
        assert row["verdict"] == expected["verdict"]
        for name, theirs in (
            *(("score", "score"), ("logit", "logit")),
            ("probability", "calibrated"),
        ):
            assert float(row[name]) == pytest.approx(float(expected[theirs]), abs=1e-5)


def test_a_band_goes_from_the_run_to_the_verdicts(run, tmp_path, capsys):
    folder, evaluated = run
    workdir = shutil.copytree(folder / "run", tmp_path / "run")
    logits = np.array([float(row["logit"]) for row in evaluated.values()])
    # Between two scores, which may differ in their last digits.
    low, high = (np.mean(np.sort(logits)[i : i + 2]) for i in (5, 11))
    with Run(workdir) as changed:
        made = changed.calibration
        lower, upper = (float(made.probability(z)) for z in (low, high))
        banded = dataclasses.replace(
            made,
            rule="band",
            lower_logit=float(low),
            lower_probability=lower,
            threshold_logit=float(high),
            threshold_probability=upper,
        )
        changed.write_calibration(banded)
        export.write(changed, tmp_path / "detector")
    expected = exported.evaluated(workdir)
    found = tmp_path / "out.json"
    given = (folder / "in", "--json", found)
    assert predict(*given, detector=tmp_path / "detector") == 0
    document = json.loads(found.read_text())
    names = [os.path.splitext(path)[0] for path in expected]
    by_path = dict(zip(names, expected.values(), strict=True))
    for row in document["results"]:
        path = os.path.relpath(row["path"], folder / "in")
        assert row["verdict"] == by_path[os.path.splitext(path)[0]]["verdict"]
        close = row["verdict"] == "undecided"
        assert row["reason"] == "too close to call" * close
    counts = {"real": 6, "undecided": 6, "fake": 6, "too_close": 6}
    assert {name: document["summary"][name] for name in counts} == counts
    assert document["threshold"]["lower"] == pytest.approx(lower)
    assert cli.main(["show", str(tmp_path / "detector")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"fake from P(fake) {upper:.4f} (logit {high:.4f}), real below" in text
    assert f"real below {lower:.4f} (logit {low:.4f}), undecided between: at" in text


@pytest.mark.parametrize("options", [(), ("--program",)])
def test_the_program_in_the_file_is_run_where_that_is_asked_for(
    run, options, tmp_path, monkeypatch
):
    folder, evaluated = run
    read = []
    original = jax.export.deserialize

    def deserialize(data):
        read.append(len(data))
        return original(data)

    monkeypatch.setattr(jax.export, "deserialize", deserialize)
    out = tmp_path / "out.csv"
    arguments = ("--csv", out, *options)
    assert predict(folder / "in", *arguments, detector=folder / "detector") == 0
    scores = sorted(float(row["score"]) for row in rows(out)[0])
    expected = sorted(float(row["score"]) for row in evaluated.values())
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len(read) == len(options)


def test_what_the_network_looks_at(run, tmp_path):
    folder, _ = run
    (first, *_) = sorted((folder / "in").rglob("*.png"))
    shutil.copy(first, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    drawn = tmp_path / "drawn"
    arguments = ("--explain", drawn, "--csv", tmp_path / "out")
    assert predict(tmp_path, *arguments, detector=folder / "detector") == 0
    assert len(rows(tmp_path / "out")[0]) == 2
    (figure,) = drawn.iterdir()
    with Image.open(figure) as image:
        assert image.format == "PNG" and min(image.size) > 200
