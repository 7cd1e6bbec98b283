"""The table of the benchmark: steps in alternation with other programs."""

import json
import re
import shlex
import sys

import pytest
import small_runs

from experiments import peers, suite
from fdftnet_jax.errors import UserError
from fdftnet_jax.training import benchmark


def _command(program):
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"


def _config(step):
    return small_runs.config("", batch_size=4)


def _numbers(cell):
    """Median, lowest and highest."""
    found = re.search(r"([\d.,]+) \(([\d.,]+)-([\d.,]+)\)", cell)
    return [float(number.replace(",", "")) for number in found.groups()]


def test_a_step_its_peers_and_the_ratio_to_the_best_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "matmul_rate", lambda: 2.1e11)
    # Gives 1, 2 and 3, run by run.
    counter = tmp_path / "runs"
    counting = f"f = open({str(counter)!r}, 'a+'); f.write('.'); print(f.tell())"
    commands = {
        "infer-xception: slow": _command(counting),
        "infer-xception: fast": _command("print('{\"images_per_second\": 1000}')"),
        "infer-xception: broken": _command("raise SystemExit('no library')"),
        "pretrain-xception: of another step": _command("print(1e9)"),
    }
    lines = list(
        suite.rows(["infer-xception"], commands, runs=3, repeat=1, config_of=_config)
    )
    assert "3 runs of 1 steps" in lines[0] and "jax" in lines[0]
    header, rule, row = lines[2:]
    assert header.count("|") == rule.count("|") == row.count("|")
    what, ours, others, ratio, product = row.strip("| ").split(" | ")
    assert what == f"{suite.STEPS['infer-xception']}, batch 4, 32x32"
    median, low, high = _numbers(ours)
    assert 0 < low <= median <= high
    # It is left alone after its first failure.
    assert others == (
        "slow 2 (1-3); fast 1,000 (1,000-1,000); broken failed: no library"
    )
    assert _numbers(ratio) == pytest.approx(
        [rate / 1000 for rate in (median, low, high)], abs=0.006
    )
    assert product == "210 (210-210)"


def test_every_step_has_a_config_that_the_benchmark_takes():
    sizes = {step: suite.config_of(step).data.size for step in suite.STEPS}
    assert sizes.pop("features-efficientnet_lite0") == 224
    # It trains on windows of what it scores.
    assert sizes.pop("infer-efficientnet_lite0") == 256
    assert sizes.pop("finetune-efficientnet_lite0") == 128
    assert set(sizes.values()) == {64}
    assert {suite.config_of(step).batch_size for step in suite.STEPS} == {32}
    # The default recipe trains all of it; on the paper's backbones, the new layers.
    assert suite.config_of("finetune-efficientnet_lite0").trainable == "all"
    assert suite.config_of("finetune-xception").trainable == "head"


@pytest.mark.parametrize(
    ("steps", "commands"),
    [
        (["infer-xception"], {"infer-xcption: peer": "true"}),
        (["infer-xception"], {"infer-xception": "true"}),
        (["infer-xcption"], {}),
    ],
)
def test_unknown_steps_are_named_before_anything_is_measured(steps, commands):
    table = suite.rows(steps, commands, runs=1, repeat=1, config_of=None)
    with pytest.raises(UserError, match="steps: infer-xception, "):
        next(table)


@pytest.mark.parametrize("content", [None, "[]", '{"a": 1}', "{"])
def test_a_file_of_peers_that_is_none(tmp_path, content):
    path = tmp_path / "peers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"peers\.json"):
        peers.read(path)


def test_a_file_of_peers(tmp_path):
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"infer-xception: a": "b --c"}))
    assert peers.read(path) == {"infer-xception: a": "b --c"}
