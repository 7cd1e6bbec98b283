"""The page of a grid, from the same parts as a run's."""

import pytest
from test_report import Reader

import configs.ablation.table6
import configs.compare
import configs.table5
from experiments import ablate, compare, grid, table5
from fdftnet_jax.reporting import grid_report, page, tables


def written(tmp_path, **changes):
    lines = [["method", "AUROC, %"], ["<b>new</b>", "93.1 ± 0.4"]]
    given = {
        "notes": ["Toy & more."],
        "failures": {"seed0/base": "no <memory>"},
        "config": '{"seeds": 1}',
        "figures": [page.Figure("<svg/>", "a plot", "how to read it")],
        "words": {"method": "what was done"},
    }
    path = grid_report.write(
        tmp_path / "new" / "table.5", "A title", ["About."], lines, **given | changes
    )
    assert path == tmp_path / "new" / "table.5.html"
    return Reader(path.read_text())


def test_all_of_it_is_there_and_escaped(tmp_path):
    read = written(tmp_path)
    for text in (
        "A title About. Before you trust these numbers Toy & more.",
        "method AUROC, % <b>new</b> 93.1 ± 0.4",
        "seed0/base: no <memory>",
        "how to read it",
        "method what was done",
        '{"seeds": 1}',
        "python 3.",
    ):
        assert text in read.text
    assert ("b", {}) not in read.elements
    (picture,) = [a for tag, a in read.elements if tag == "img"]
    assert picture["alt"] == "a plot"


def test_without_failures_nothing_is_said_of_them(tmp_path):
    assert "Failed" not in written(tmp_path, failures={}, figures=()).text


@pytest.mark.parametrize(
    ("experiment", "config"),
    [
        (table5, configs.table5.get_config()),
        (ablate, configs.ablation.table6.get_config()),
        (compare, configs.compare.get_config("squeezenet,toy")),
    ],
    ids=["table5", "ablate", "compare"],
)
def test_experiments_write_it_from_the_start(experiment, config, tmp_path):
    file = getattr(config, "name", experiment.__name__.rpartition(".")[2])
    if experiment is not compare:
        config.seeds = 1
    runs, write = experiment.prepare(config, tmp_path)
    text = write({run.name: grid.Outcome() for run in runs})
    assert f"{file}.html" in text.splitlines()[-1]
    read = Reader((tmp_path / f"{file}.html").read_text())
    network = "xception" if experiment is ablate else "squeezenet"
    assert network in read.text and '"recipe": "default"' in read.text
    if experiment is not compare:
        assert "0 of 1" in read.text and "Toy pictures" in read.text


def test_cells_are_those_of_the_markdown():
    scores = {
        "figures": {k: {"value": 0.5, "interval": [0.4, 0.6]} for k in tables.METRICS},
        "num_examples": 40,
    }
    rows = [tables.Row({"data": "a|b"}, [scores], 1, {"auc": 90.0})]
    heads, line = tables.cells(rows)
    assert line[0] == "a|b" and len(heads) == len(line)
    assert tables.markdown(rows).splitlines()[2].count("\\|") == 1
    assert "1 seed" in " ".join(tables.notes(rows, toy=False))
    assert not any("Toy" in note for note in tables.notes(rows, toy=False))
