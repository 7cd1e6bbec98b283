"""Means over seeds with their interval, the tables made of them, and the paper's."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fdftnet_jax.models import registry
from fdftnet_jax.reporting import paper, tables


@pytest.mark.parametrize("number", [2, 3, 10])
def test_interval_is_student_s(number):
    values = np.random.default_rng(number).uniform(0.4, 0.9, number)
    found = tables.over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(values.mean())
    assert found.mean - found.half_width == pytest.approx(expected.low)
    assert found.mean + found.half_width == pytest.approx(expected.high)


def test_interval_covers_the_mean_as_often_as_it_says():
    """Of 4,000 intervals from 3 normal values each, 95 % +- 3 standard errors."""
    values = np.random.default_rng(0).normal(0.7, 0.1, (4000, 3))
    found = [tables.over_seeds(row) for row in values]
    covered = np.mean([abs(e.mean - 0.7) <= e.half_width for e in found])
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 4000)


def test_one_value_has_no_interval_and_equal_ones_a_width_of_0():
    assert tables.over_seeds([0.5]) == tables.Estimate(0.5, None)
    assert tables.over_seeds([0.25, 0.25, 0.25]) == tables.Estimate(0.25, 0.0)


@pytest.mark.parametrize("values", [[], [[0.5]], 0.5])
def test_what_is_no_vector_of_values(values):
    with pytest.raises(ValueError, match="must be a vector"):
        tables.over_seeds(values)


def scores(accuracy, auc, interval=None):
    """As an evaluation holds them; `interval` is that of the accuracy."""
    figures = {
        "accuracy": {"value": accuracy, "interval": interval},
        "auc": {"value": auc, "interval": None},
    }
    return {"figures": figures, "num_examples": 40}


def some_rows():
    return [
        tables.Row(
            {"data": "faces|a", "detector": "baseline"},
            [scores(0.5, 0.25), scores(0.75, 0.75)],
            3,
            {"accuracy": 87.5, "auc": 90.0},
        ),
        tables.Row({"data": "faces", "detector": "FDFtNet"}, [scores(1.0, 0.96875)], 1),
        tables.Row({"data": "none", "detector": "FDFtNet"}, [], 3),
    ]


def cells(markdown):
    lines = [re.split(r"(?<!\\)\|", line) for line in markdown.splitlines()]
    assert {len(line) for line in lines} == {len(lines[0])}
    return [[cell.strip() for cell in line[1:-1]] for line in lines]


def test_markdown():
    header, rule, *lines = cells(tables.markdown(some_rows()))
    assert header == [
        *["data", "detector", "accuracy, %", "paper", "AUROC, %", "paper"],
        *["test images", "seeds"],
    ]
    assert set(rule) == {"---"}
    # Student's t for one degree of freedom is tan(0.475 pi); half-widths of
    # t * 0.25 / 2 and t * 0.5 / 2.
    t = np.tan(0.475 * np.pi)
    assert lines == [
        [
            *["faces\\|a", "baseline", f"62.50 ± {12.5 * t:.2f}", "87.50"],
            *[f"50.00 ± {25 * t:.2f}", "90.00", "40", "2 of 3"],
        ],
        ["faces", "FDFtNet", "100.00", "-", "96.88", "-", "40", "1"],
        ["none", "FDFtNet", "-", "-", "-", "-", "-", "0 of 3"],
    ]


def test_without_published_figures_there_are_no_columns_for_them():
    assert "paper" not in tables.markdown(some_rows()[1:])


def test_csv():
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(some_rows()))))
    assert [row["data"] for row in rows] == ["faces|a", "faces", "none"]
    assert [row["seeds"] for row in rows] == ["2", "1", "0"]
    first, second, third = rows
    assert float(first["accuracy_mean"]) == 0.625
    expected = stats.ttest_1samp([0.25, 0.75], 0).confidence_interval(0.95)
    assert float(first["auc_low"]) == pytest.approx(expected.low)
    assert float(first["auc_high"]) == pytest.approx(expected.high)
    assert (first["accuracy_paper"], first["auc_paper"]) == ("0.875", "0.9")
    assert (second["auc_mean"], second["auc_low"]) == ("0.96875", "")
    assert (third["auc_mean"], third["test_images"], third["auc_paper"]) == ("",) * 3


def test_one_seed_has_the_interval_over_test_images():
    row = tables.Row({"data": "a"}, [scores(0.5, 0.75, [0.375, 0.5625])], 1)
    _, _, line = cells(tables.markdown([row]))
    assert line == ["a", "50.00 [37.50, 56.25]", "75.00", "40", "1"]
    [found] = csv.DictReader(io.StringIO(tables.csv_text([row])))
    assert [found[f"accuracy_{name}"] for name in ("mean", "low", "high")] == [
        *["0.5", "0.375", "0.5625"]
    ]
    assert (found["accuracy_interval"], found["auc_interval"]) == ("images", "")


def test_several_seeds_have_the_interval_over_seeds():
    seeds = [scores(value, 0.75, [0.0, 1.0]) for value in (0.5, 0.75, 0.625)]
    row = tables.Row({"data": "a"}, seeds, 3)
    plain = tables.Row({"data": "a"}, [scores(v, 0.75) for v in (0.5, 0.75, 0.625)], 3)
    assert tables.markdown([row]) == tables.markdown([plain])
    assert tables.csv_text([row]) == tables.csv_text([plain])
    assert ",seeds," in tables.csv_text([row])


@pytest.mark.parametrize("toy", [True, False])
def test_written_files(tmp_path, toy):
    stem = tmp_path / "new" / "table.5"
    failures = {"toy/squeezenet/seed1/base": "the loss is no longer finite"}
    text = tables.write(stem, "A title", some_rows(), toy=toy, failures=failures)
    assert Path(f"{stem}.md").read_text() == text
    assert Path(f"{stem}.csv").read_text() == tables.csv_text(some_rows())
    assert text.startswith("# A title\n\n| data |")
    assert "± is the 95 % interval of the mean over seeds" in text
    assert "From two seeds it is very wide" in text and "1 seed:" in text
    assert "bootstrap" not in text
    assert ("Toy pictures" in text) == toy
    assert "- toy/squeezenet/seed1/base: the loss is no longer finite\n" in text
    one = tables.write(stem, "A title", some_rows()[1:], toy=toy, failures={})
    assert "1 seed" in one and "Failed" not in one and "95 %" not in one
    found = [tables.Row({"data": "a"}, [scores(0.5, 0.75, [0.375, 0.5625])], 1)]
    assert "over test images (bootstrap)" in tables.write(
        stem, "A title", found, toy=toy, failures={}
    )


# What sections 4.2 and 5 say in words, from -> to; accuracy, AUROC.
SAID = {
    ("pggan", "shallownetv3"): ((85.73, 92.90), (88.03, 94.53)),
    ("pggan", "xception"): ((87.12, 94.96), (90.29, 95.98)),
    ("deepfakes", "xception"): ((95.10, 98.92), (97.02, 99.37)),
    ("deepfakes", "shallownetv3"): ((89.77, 92.81), (94.29, 97.83)),
    ("deepfakes", "resnet50v2"): ((81.52, 89.72), (91.03, 96.08)),
    ("deepfakes", "squeezenet"): ((50.00, 50.00), (92.82, 97.61)),
    ("face2face", "resnet50v2"): ((58.83, 62.47), (85.15, 92.91)),
}


@pytest.mark.parametrize(("dataset", "backbone"), SAID)
def test_table_5_is_what_the_paper_s_text_says(dataset, backbone):
    found = [
        tuple(paper.table5(dataset, backbone, detector).values())
        for detector in ("baseline", "FDFtNet")
    ]
    assert tuple(found) == SAID[dataset, backbone]


def test_table_5_has_every_cell_and_improves_in_each():
    for dataset in ("pggan", "deepfakes", "face2face"):
        for backbone in registry.OF_PAPER:
            before = paper.table5(dataset, backbone, "baseline")
            after = paper.table5(dataset, backbone, "FDFtNet")
            assert list(before) == list(after) == list(tables.METRICS)
            assert all(50 <= before[m] < after[m] < 100 for m in before)


def test_table_6_is_what_the_paper_s_text_says():
    with_ftt = paper.table6("deepfakes", "xception", 3)
    without = paper.table6("deepfakes", "xception", 0)
    assert with_ftt == paper.table5("deepfakes", "xception", "FDFtNet")
    assert with_ftt["accuracy"] - without["accuracy"] == pytest.approx(2.46)


def test_what_the_paper_does_not_have():
    assert paper.table5("toy", "xception", "FDFtNet") == {}
    assert paper.table5("pggan", "my_cnn:MyCNN", "FDFtNet") == {}
    assert paper.table6("deepfakes", "squeezenet", 3) == {}
    assert paper.table6("deepfakes", "xception", 2) == {}
