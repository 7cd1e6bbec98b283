"""A grid of runs: what is made, what is not made again, and what failed.

Most tests here stand in for training and scoring, and count the calls.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import small_runs

from experiments import grid
from fdftnet_jax.errors import Interrupted, UserError
from fdftnet_jax.evaluation import calibration, scoring
from fdftnet_jax.run import Run
from fdftnet_jax.training import loop


class Made:
    """What stands in for training and scoring.

    Attributes:
      trained: the names of the trained runs.
      scored: run and data of each scoring.
      failing: run -> what its training raises.
    """

    def __init__(self, workdir):
        self.workdir = workdir
        self.trained, self.scored, self.failing = [], [], {}

    def name(self, directory):
        return str(directory).removeprefix(f"{self.workdir}/")

    def train(self, config, directory):
        name = self.name(directory)
        self.trained.append(name)
        directory = self.workdir / name
        (directory / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
        Run(directory).write_config(config)
        if name in self.failing:
            raise self.failing[name]

    def score(self, run, split, data):
        name = self.name(run.directory)
        assert split == "test"
        self.scored.append((name, data))
        if "scoring" in self.failing:
            raise self.failing["scoring"]
        records = [
            {"path": "", "group": "", "generator": "", "label": i % 2} for i in range(6)
        ]
        seed = sum(map(ord, name + str(data)))
        logits = np.random.default_rng(seed).normal(size=(6, 2)).astype(np.float32)
        title = f"toy-{data.get('family', 'both')}"
        return scoring.Scores(title, "", split, 4, logits, records)


@pytest.fixture
def made(monkeypatch, tmp_path):
    found = Made(tmp_path)
    monkeypatch.setattr(loop, "train_and_evaluate", found.train)
    best = SimpleNamespace(trained_parameters=7)
    monkeypatch.setattr(Run, "best", best)
    monkeypatch.setattr(calibration, "for_run", lambda *_: None)
    monkeypatch.setattr(scoring, "score_split", found.score)
    monkeypatch.setattr(calibration, "for_run", lambda *_: None)
    return found


def some_runs(names=("a", "b"), scored=None, **changes):
    """A base and a fine-tuning for each name, as `<name>/base` and `<name>/tuned`."""
    options = {"scored": scored} if scored else {}
    runs = []
    for name in names:
        base = grid.GridRun(f"{name}/base", small_runs.config("cache"), **options)
        config = small_runs.config("cache", "to be set", **changes)
        runs += [base, grid.GridRun(f"{name}/tuned", config, base.name, **options)]
    return runs


ALL = ["a/base", "a/tuned", "b/base", "b/tuned"]


def written(workdir, name, dataset="toy-both"):
    path = workdir / name / "evaluation" / f"{dataset}-test.json"
    return json.loads(path.read_text())


def test_every_run_is_trained_and_scored_once_in_order(made, tmp_path, capsys):
    reported = []
    outcomes = grid.execute(
        some_runs(), tmp_path, lambda found: reported.append(len(made.trained))
    )
    assert made.trained == ALL and reported == [1, 2, 3, 4]
    assert made.scored == [(name, {}) for name in ALL]
    for name in ALL:
        assert outcomes[name].scores == {"test": written(tmp_path, name)}
        assert outcomes[name].finished and not outcomes[name].failure
        assert outcomes[name].trained_parameters == 7
        assert outcomes[name].files["test"].parent == tmp_path / name / "evaluation"
    saved = json.loads((tmp_path / "a" / "tuned" / "config.json").read_text())
    assert saved["init_from"] == str(tmp_path / "a" / "base")
    said = capsys.readouterr().err
    assert "[1/4] a/base\n" in said and "[4/4] b/tuned, about 0.0 min left" in said
    grid.check_complete(outcomes)


def test_again_nothing_is_made(made, tmp_path):
    first = grid.execute(some_runs(), tmp_path)
    again = grid.execute(some_runs(), tmp_path)
    assert made.trained == ALL and len(made.scored) == 4
    assert again == first


@pytest.mark.parametrize("stopped", range(4))
def test_a_stopped_grid_goes_on(stopped, made, tmp_path):
    """Stopped in each training: that one alone is begun again."""
    made.failing[ALL[stopped]] = Interrupted(15, "stopped")
    with pytest.raises(Interrupted):
        grid.execute(some_runs(), tmp_path)
    assert made.trained == ALL[: stopped + 1]
    del made.failing[ALL[stopped]]
    grid.execute(some_runs(), tmp_path)
    assert made.trained == [*ALL[: stopped + 1], *ALL[stopped:]]
    assert made.scored == [(name, {}) for name in ALL]


def test_a_killed_grid_goes_on(made, tmp_path):
    """Killed after a training: its folder has no outcome, and `loop` goes on there."""
    grid.execute(some_runs(["a"]), tmp_path)
    (tmp_path / "a" / "tuned" / "outcome.json").unlink()
    grid.execute(some_runs(["a"]), tmp_path)
    assert made.trained == ["a/base", "a/tuned", "a/tuned"]


def test_interrupted_while_scoring(made, tmp_path):
    made.failing["scoring"] = Interrupted(2, "stopped")
    with pytest.raises(Interrupted):
        grid.execute(some_runs(["a"]), tmp_path)
    del made.failing["scoring"]
    grid.execute(some_runs(["a"]), tmp_path)
    assert made.trained == ["a/base", "a/tuned"]
    assert [name for name, _ in made.scored] == ["a/base", "a/base", "a/tuned"]


def test_a_failure_is_recorded_and_the_others_go_on(made, tmp_path, capsys):
    made.failing["a/base"] = UserError("the loss is no longer finite")
    outcomes = grid.execute(some_runs(), tmp_path)
    assert made.trained == ["a/base", "b/base", "b/tuned"]
    assert grid.failures(outcomes) == {
        "a/base": "the loss is no longer finite",
        "a/tuned": "it starts from a/base, which failed",
    }
    assert "a/base failed: the loss is no longer finite" in capsys.readouterr().err
    runs = some_runs()
    assert grid.scores(outcomes, runs[::2]) == [written(tmp_path, "b/base")]
    with pytest.raises(UserError, match="2 of 4 runs failed, first a/base: the loss"):
        grid.check_complete(outcomes)
    # Given again, it is tried again; then all is well.
    made.failing.clear()
    outcomes = grid.execute(runs, tmp_path)
    assert made.trained[3:] == ["a/base", "a/tuned"]
    assert not grid.failures(outcomes)


def test_a_score_that_fails_leaves_the_training(made, tmp_path):
    made.failing["scoring"] = UserError("no test split")
    outcomes = grid.execute(some_runs(["a"]), tmp_path)
    assert list(grid.failures(outcomes).values()) == ["no test split"] * 2
    assert "trained; to be scored" not in grid.plan(some_runs(["a"]), tmp_path)
    made.failing.clear()
    grid.execute(some_runs(["a"]), tmp_path)
    assert made.trained == ["a/base", "a/tuned"]


def test_a_score_that_failed_and_is_no_longer_asked_for(made, tmp_path):
    scored = {"one": {"dir": "x/faces"}, "two": {"dir": "y/faces"}}
    [base, _] = some_runs(["a"], scored)
    assert grid.failures(grid.execute([base], tmp_path))
    [base, _] = some_runs(["a"], {"one": scored["one"]})
    outcomes = grid.execute([base], tmp_path)
    assert len(outcomes["a/base"].scores) == 1 and not grid.failures(outcomes)


def test_only_new_scores_are_computed(made, tmp_path):
    old = {"old": {"family": "upsampled"}}
    grid.execute(some_runs(["a"], old), tmp_path)
    both = old | {"new": {"family": "blended"}}
    outcomes = grid.execute(some_runs(["a"], both), tmp_path)
    assert made.trained == ["a/base", "a/tuned"]
    assert made.scored[2:] == [
        ("a/base", {"family": "blended"}),
        ("a/tuned", {"family": "blended"}),
    ]
    assert outcomes["a/base"].scores == {
        "old": written(tmp_path, "a/base", "toy-upsampled"),
        "new": written(tmp_path, "a/base", "toy-blended"),
    }
    # Another meaning of a title is another score.
    grid.execute(some_runs(["a"], {"old": {"family": "both"}}), tmp_path)
    assert made.scored[4:] == [
        ("a/base", {"family": "both"}),
        ("a/tuned", {"family": "both"}),
    ]


def test_a_score_whose_file_is_gone_is_computed_again(made, tmp_path):
    grid.execute(some_runs(["a"]), tmp_path)
    shutil.rmtree(tmp_path / "a" / "base" / "evaluation")
    grid.execute(some_runs(["a"]), tmp_path)
    assert made.trained == ["a/base", "a/tuned"]
    assert [name for name, _ in made.scored] == ["a/base", "a/tuned", "a/base"]


def test_two_data_sets_of_one_name(made, tmp_path):
    scored = {"one": {"dir": "x/faces"}, "two": {"dir": "y/faces"}}
    outcomes = grid.execute(some_runs(["a"], scored), tmp_path)
    assert "are called 'toy-both': rename" in outcomes["a/base"].failure


def test_a_run_that_is_not_scored_is_trained(made, tmp_path):
    run = grid.GridRun("a", small_runs.config("cache"), scored={})
    assert "1 left" in grid.plan([run], tmp_path)
    grid.execute([run], tmp_path)
    assert made.trained == ["a"] and not made.scored
    assert "0 left" in grid.plan([run], tmp_path)


def test_another_config_is_refused_before_anything_is_trained(made, tmp_path):
    grid.execute(some_runs(["a"]), tmp_path)
    changed = some_runs(["b", "a"], epochs=7)
    with pytest.raises(UserError, match=r"another config \(epochs: 3 -> 7\)"):
        grid.execute(changed, tmp_path)
    with pytest.raises(UserError, match="another config"):
        grid.plan(changed, tmp_path)
    assert made.trained == ["a/base", "a/tuned"]
    assert grid.execute(some_runs(["a"]), tmp_path)["a/tuned"].finished


def test_a_wrong_value_is_refused_before_anything_is_trained(made, tmp_path):
    with pytest.raises(UserError, match="a/tuned: epochs is 0: expected a whole"):
        grid.execute(some_runs(["a"], epochs=0), tmp_path)
    assert not made.trained


def test_a_moved_grid_keeps_what_it_has(made, tmp_path):
    grid.execute(some_runs(["a"]), tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    outcomes = grid.execute(some_runs(["a"]), tmp_path / "new")
    assert len(made.trained) == 2
    assert all(outcome.scores for outcome in outcomes.values())


def test_runs_that_make_no_grid(tmp_path):
    base, tuned = some_runs(["a"])
    with pytest.raises(ValueError, match="a/tuned comes before a/base"):
        grid.plan([tuned, base], tmp_path)
    with pytest.raises(ValueError, match="Two runs are called a/base"):
        grid.plan([base, base], tmp_path)


def test_plan(made, tmp_path):
    assert grid.plan(some_runs(), tmp_path).splitlines() == [
        *[f"{name}  to do" for name in ALL],
        "4 runs: 0 done, 4 left",
    ]
    made.failing["a/tuned"] = UserError("the loss is no longer finite")
    made.failing["b/base"] = Interrupted(15, "stopped")
    with pytest.raises(Interrupted):
        grid.execute(some_runs(), tmp_path)
    rows = "".join(json.dumps({"epoch": epoch}) + "\n" for epoch in (1, 2))
    (tmp_path / "b" / "base" / "history.jsonl").write_text(rows)
    *lines, last = grid.plan(some_runs(), tmp_path).splitlines()
    assert lines == [
        "a/base  done",
        "a/tuned  failed, to be tried again: the loss is no longer finite",
        "b/base  begun: 2 of at most 3 epochs",
        "b/tuned  to do",
    ]
    assert last.startswith("4 runs: 1 done, 3 left, about ")
    assert made.trained == ALL[:3]


@pytest.mark.parametrize(
    ("seconds", "left"),
    [
        # Two fine-tunings of 30 s on average, and one of which 20 s are over.
        ([600, 20, 40, None, None, 20], "about 1.2 min left"),
        # None of the kind is finished: as long as the others.
        ([7200, None, None], "about 4.0 h left"),
        ([None, None], ""),
        ([10, 10], ""),
    ],
)
def test_time_left(seconds, left, tmp_path):
    base = some_runs(["a"])[0]
    runs = [base]
    for i in range(len(seconds) - 1):
        runs.append(grid.GridRun(f"a/{i}", some_runs(["a"])[1].config, base.name))
    outcomes = {}
    for run, spent in zip(runs, seconds, strict=True):
        outcomes[run.name] = grid.Outcome(finished=spent is not None)
        outcomes[run.name].seconds = spent or 0.0
    if len(seconds) == 6:
        outcomes[runs[-1].name].finished = False
    rest = [run for run in runs if not outcomes[run.name].finished]
    assert grid._time_left(rest, runs, outcomes) == (f", {left}" if left else "")


def test_make_prints_the_table_and_ends_with_an_error_where_runs_failed(
    made, tmp_path, capsys
):
    def write(outcomes):
        return f"{sum(bool(outcome.scores) for outcome in outcomes.values())} scored"

    grid.make(some_runs(), tmp_path, write, dry_run=True)
    assert "4 left" in capsys.readouterr().out and not made.trained
    made.failing["b/tuned"] = UserError("diverged")
    with pytest.raises(UserError, match="1 of 4 runs failed, first b/tuned: diverged"):
        grid.make(some_runs(), tmp_path, write)
    assert capsys.readouterr().out == "3 scored\n"
    made.failing.clear()
    grid.make(some_runs(), tmp_path, write)
    assert capsys.readouterr().out == "4 scored\n"


@pytest.mark.slow
def test_a_diverging_run_fails_and_the_others_go_on(cache_dir, tmp_path):
    """With real training."""
    diverging = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}
    runs = [
        grid.GridRun("wild", small_runs.config(cache_dir, epochs=1, **diverging)),
        grid.GridRun("calm", small_runs.config(cache_dir, epochs=1)),
    ]
    outcomes = grid.execute(runs, tmp_path)
    assert "finite" in outcomes["wild"].failure
    assert outcomes["calm"].scores["test"]["num_examples"] == 18
