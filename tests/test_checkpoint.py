import chex
import jax
import numpy as np
import pytest

from fdftnet_jax.errors import UserError
from fdftnet_jax.training import checkpoint, optimizer, steps
from fdftnet_jax.training.checkpoint import Checkpoints

META = {"model": {"backbone": "squeezenet"}, "labels": ["real", "fake"]}


def state(step, *, mask=None, batch_stats=True, width=3):
    """A state of random values, with an optimiser that has seen a gradient."""
    rng = np.random.default_rng(step)
    params = {
        "backbone": {
            "conv": {"kernel": rng.normal(size=(2, width)).astype(np.float32)}
        },
        "classifier": {"bias": rng.normal(size=2).astype(np.float32)},
    }
    mask = mask or {
        "backbone": {"conv": {"kernel": False}},
        "classifier": {"bias": True},
    }
    rule = optimizer.create({"momentum": 0.9, "clip_norm": 0.0}, lambda step: 0.1, mask)
    _, opt_state = rule.update(params, rule.init(params), params)
    stats = {"bn": {"mean": rng.normal(size=4).astype(np.float32)}}
    return steps.TrainState(
        step=np.int32(step),
        params=params,
        batch_stats=stats if batch_stats else {},
        opt_state=jax.device_get(opt_state),
    )


def save(workdir, losses, **options):
    with Checkpoints(workdir, create=True) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(state(step, **options), {**META, "of": step}, loss)


def kept(workdir):
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def test_best_and_latest_are_kept_and_found_again(tmp_path):
    save(tmp_path, {10: 0.7, 20: 0.4, 30: 0.6, 40: 0.5})
    assert kept(tmp_path) == [20, 40]
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best, checkpoints.latest) == (20, 40)
        assert checkpoints.load_meta()["of"] == 20
        assert checkpoints.load_meta(40)["of"] == 40
        best = state(20)
        chex.assert_trees_all_equal(
            checkpoints.load_variables(),
            {"params": best.params, "batch_stats": best.batch_stats},
        )
    # The losses survive, so that a resumed run knows what its best was.
    save(tmp_path, {50: 0.45})
    assert kept(tmp_path) == [20, 50]
    save(tmp_path, {60: 0.1})
    assert kept(tmp_path) == [60]


def test_of_equal_losses_the_first_is_the_best(tmp_path):
    """As `Progress` counts, so that a run's last line names the checkpoint."""
    save(tmp_path, {1: 0.6, 2: 0.5, 3: 0.5, 4: 0.5})
    assert kept(tmp_path) == [2, 4]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best == 2


@pytest.mark.parametrize("batch_stats", [True, False])
def test_the_latest_state_comes_back_bit_by_bit(tmp_path, batch_stats):
    save(tmp_path, {10: 0.1, 20: 0.2}, batch_stats=batch_stats)
    saved = state(20, batch_stats=batch_stats)
    template = jax.tree.map(np.zeros_like, state(0, batch_stats=batch_stats))
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.load_state(template)
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, saved)
    chex.assert_trees_all_equal(found, saved)


ALL = {"backbone": {"conv": {"kernel": True}}, "classifier": {"bias": True}}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"width": 5}, r"checkpoint in .*kernel.*\(2, 3\) instead of \(2, 5\)"),
        ({"batch_stats": False}, "checkpoint in .*1 surplus: .*batch_stats"),
        ({"mask": ALL}, "optimiser state in .*1 missing: .*trace.*kernel"),
    ],
)
def test_a_state_of_another_network_is_refused(tmp_path, template, message):
    save(tmp_path, {10: 0.1})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.load_state(state(0, **template))


def test_a_misfit_names_both_sides():
    found = {"conv1": np.zeros(3), "conv2": np.zeros((2, 2))}
    expected = {"fire1": np.zeros(3), "conv2": np.zeros((2, 4))}
    with pytest.raises(UserError) as error:
        checkpoint.check_fits(found, expected, "the backbone in runs/base")
    assert str(error.value) == (
        "the backbone in runs/base does not fit the network: 1 missing: ['fire1']; "
        "1 surplus: ['conv1']; 1 misshapen: ['conv2'] (2, 2) instead of (2, 4)"
    )
    checkpoint.check_fits(found, found, "itself")


def test_nothing_is_pickled(tmp_path):
    save(tmp_path, {10: 0.1})
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert path.suffix not in (".pkl", ".pickle")
        # The first byte of every pickle of protocol 2 or later.
        assert not path.read_bytes().startswith(b"\x80"), path


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    save(tmp_path, {10: 0.1})
    monkeypatch.undo()
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match="format 99, this version reads 1"),
    ):
        checkpoints.load_meta()


def test_no_checkpoints(tmp_path):
    with pytest.raises(UserError, match=f"no checkpoints in {tmp_path}/missing"):
        Checkpoints(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    with Checkpoints(tmp_path, create=True) as checkpoints:
        assert checkpoints.best is None and checkpoints.latest is None
        with pytest.raises(UserError, match=r"no checkpoint in .* yet"):
            checkpoints.load_meta()
