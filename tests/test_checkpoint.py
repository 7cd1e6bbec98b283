import shutil

import chex
import jax
import numpy as np
import pytest
import small_runs

from fdftnet_jax import checkpoint
from fdftnet_jax.checkpoint import Checkpoints
from fdftnet_jax.errors import UserError
from fdftnet_jax.training import optimizer, steps

# TensorStore's late answers to a read that has failed already.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
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
    rule = optimizer.create(small_runs.OPTIMIZER, lambda step: 0.1, mask)
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
        pytest.raises(UserError, match="format 99, this version reads 2"),
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


def parts(checkpoint):
    """The files of a checkpoint that hold something."""
    return sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.stat().st_size)


def damage(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(
            content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        )


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_a_damaged_checkpoint_is_refused_or_whole(tmp_path, how):
    """Whichever file is damaged: never other values, never another exception."""
    save(tmp_path / "whole", {10: 0.3, 20: 0.4})
    names = [p.relative_to(tmp_path / "whole") for p in parts(tmp_path / "whole")]
    names = [name for name in names if name.parts[1] == "20"]
    refused = []
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", workdir)
        damage(workdir / name, how)
        try:
            with Checkpoints(workdir) as checkpoints:
                loaded = checkpoints.load_state(state(0))
                assert checkpoints.load_meta(20)["of"] == 20
        except UserError as error:
            message = str(error)
            assert f"{workdir}/checkpoints" in message and "is damaged" in message
            assert "copy the workdir again" in message and "\n" not in message
            if "20 is damaged" in message:
                assert "remove that folder to use checkpoint 10" in message
            refused.append(name)
            continue
        chex.assert_trees_all_equal(loaded, state(20))
    # Its values, its description; the rest is Orbax's own bookkeeping.
    assert {name.parts[2] for name in refused} >= {"variables", "optimizer", "meta"}


def test_other_labels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(META, "labels", ["fake", "real"])
    save(tmp_path, {10: 0.5})
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"\['fake', 'real'\].*\['real', 'fake'\]"),
    ):
        checkpoints.load_meta()


def test_a_checkpoint_within_an_epoch_serves_only_to_go_on(tmp_path):
    save(tmp_path, {10: 0.5, 20: 0.6, 25: None})
    assert kept(tmp_path) == [10, 25]
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best, checkpoints.latest) == (10, 25)
    save(tmp_path, {30: 0.4})
    assert kept(tmp_path) == [30]
    save(tmp_path / "first", {5: None})
    with Checkpoints(tmp_path / "first") as checkpoints:
        assert (checkpoints.best, checkpoints.latest) == (None, 5)


def test_a_checkpoint_is_replaced_once_it_is_validated(tmp_path):
    save(tmp_path, {10: 0.5, 20: None})
    save(tmp_path, {20: 0.4})
    assert kept(tmp_path) == [20]
    assert not list((tmp_path / "checkpoints").glob("replaced*"))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best == 20


@pytest.mark.parametrize("saved", [True, False])
def test_a_replacement_that_was_killed_is_ended(tmp_path, saved):
    save(tmp_path, {10: 0.5, 20: None})
    folder = tmp_path / "checkpoints"
    (shutil.copytree if saved else shutil.move)(folder / "20", folder / "replaced-20")
    with Checkpoints(tmp_path, create=True) as checkpoints:
        assert checkpoints.latest == 20
        chex.assert_trees_all_equal(checkpoints.load_state(state(0)), state(20))
    assert not list(folder.glob("replaced*"))


def test_what_a_killed_save_left_is_removed_by_the_next_run_alone(tmp_path):
    save(tmp_path, {10: 0.5})
    left = tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp"
    left.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 10
    assert left.exists()
    with Checkpoints(tmp_path, create=True) as checkpoints:
        assert checkpoints.latest == 10
    assert not left.exists()


def test_a_half_removed_checkpoint_does_no_harm(tmp_path):
    """Killed while it removed the one that was best before."""
    save(tmp_path, {10: 0.5, 20: 0.4, 30: 0.6})
    shutil.copytree(tmp_path / "checkpoints" / "20", tmp_path / "checkpoints" / "15")
    for path in parts(tmp_path / "checkpoints" / "15")[::2]:
        path.unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best, checkpoints.latest) == (20, 30)
    save(tmp_path, {40: 0.3})
    assert kept(tmp_path) == [40]
