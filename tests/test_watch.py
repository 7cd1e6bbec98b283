import json

import numpy as np
import pytest
import small_runs

from fdftnet_jax.errors import UserError
from fdftnet_jax.run import Run
from fdftnet_jax.training import steps
from fdftnet_jax.training.watch import StepWatch


@pytest.fixture(scope="module")
def stepped():
    """The pmapped step of a small network, and a state on the devices."""
    task, state = small_runs.task(small_runs.model_config())
    train, _ = steps.pmap_steps(task)
    return train, state


def test_sums_of_steps(stepped, tmp_path):
    train, state = stepped
    state, found = steps.replicate(state), []
    watch = StepWatch({}, Run(tmp_path), lambda _: [])
    for step in range(1, 5):
        if step == 3:  # Another process goes on.
            sums = json.loads(json.dumps(watch.sums()))
            watch = StepWatch(sums, Run(tmp_path), lambda _: [])
        state, metrics = train(state, steps.shard(small_runs.batch(seed=step)))
        found.append(steps.unreplicate(metrics))
        watch.add(step, np.arange(8), metrics)
    expected = {n: sum(float(m[n]) for m in found) for n in found[0]}
    assert watch.sums() == pytest.approx(expected, rel=1e-6)
    assert expected["count"] == 32 and expected["nonfinite"] == 0


def test_steps_of_one_call(tmp_path):
    """The second of three is not finite: its number, its images, its predecessors."""
    rows = {"loss": [4.0, np.nan, 4.0], "count": [8.0] * 3, "nonfinite": [0, 2, 0]}
    metrics = steps.replicate({n: np.float32(v) for n, v in rows.items()})
    indices = np.arange(24).reshape(3, 8)
    watch = StepWatch({}, Run(tmp_path), lambda found: [f"{i}.png" for i in found])
    watch.add(5, indices, metrics)
    with pytest.raises(UserError, match="the loss of step 6 is no longer finite"):
        watch.sums()
    listed = json.loads((tmp_path / "nonfinite_batch.json").read_text())
    assert listed["step"] == 6
    assert listed["images"] == [f"{i}.png" for i in range(8, 16)]
    assert watch.sums() == {"loss": 4.0, "count": 8.0, "nonfinite": 0.0}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        # The classifier's own weights: the loss. Squares that overflow: the gradient.
        (("classifier", "kernel", np.nan), "the loss of step 7 is no longer finite"),
        (("classifier", "kernel", 1e19), "the gradient of step 7 is no longer finite"),
    ],
)
def test_what_is_not_finite_stops_the_run_and_names_the_images(
    stepped, tmp_path, broken, message
):
    train, state = stepped
    layer, leaf, value = broken
    params = {**state.params, layer: dict(state.params[layer])}
    # Of either sign: what is the same for both classes has no gradient.
    sign = np.sign(np.random.default_rng(0).normal(size=params[layer][leaf].shape))
    params[layer][leaf] = np.float32(sign * value)
    bad = steps.replicate(state.replace(params=params))
    _, metrics = train(bad, steps.shard(small_runs.batch()))
    watch = StepWatch({}, Run(tmp_path), lambda indices: [f"{i}.png" for i in indices])
    watch.add(7, np.arange(10, 18), metrics)
    with pytest.raises(UserError, match=message) as error:
        watch.sums()
    assert "10.png, 11.png, 12.png, ...; the checkpoints end before" in str(error.value)
    listed = json.loads((tmp_path / "nonfinite_batch.json").read_text())
    assert listed["step"] == 7
    assert listed["images"] == [f"{i}.png" for i in range(10, 18)]


def test_a_run_names_the_step_and_its_images(cache_dir, tmp_path, monkeypatch):
    """A poisoned step 6 of 12: the checkpoint of step 4 stays."""
    pmap_steps, seen = steps.pmap_steps, []

    def poisoned(task):
        train, evaluate = pmap_steps(task)

        def step(state, batch):
            seen.append(batch["index"].reshape(-1))
            if len(seen) == 6:
                poison = steps.unreplicate(state)
                poison.params["top"]["kernel"] = np.full((16, 2), np.inf, np.float32)
                state = steps.replicate(poison)
            return train(state, batch)

        return step, evaluate

    monkeypatch.setattr(steps, "pmap_steps", poisoned)
    with pytest.raises(UserError, match="of step 6 is no longer finite"):
        small_runs.run(small_runs.config(cache_dir), tmp_path)
    listed = json.loads((tmp_path / "nonfinite_batch.json").read_text())
    from fdftnet_jax import datasets

    data = datasets.prepare(small_runs.config(cache_dir).data)
    records = data.source("train")
    assert listed["images"] == [records[int(i)]["path"] for i in seen[5]]
    assert [row["step"] for row in Run(tmp_path).history()] == [4]
    monkeypatch.undo()
    small_runs.run(small_runs.config(cache_dir), tmp_path)
    assert [row["step"] for row in Run(tmp_path).history()] == [4, 8, 12]
