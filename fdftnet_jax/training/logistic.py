"""A probe of frozen features: logistic regression instead of gradient steps.

The backbone sees every training image once, without augmentation, as evaluation does.
Its k features are standardised, and L-BFGS finds the minimum of the loss, summed over
the images, plus |w - v|^2 / (2 C) with C = 500 / k. Here v is zero, or the coefficients
that a regression had before where the run goes on from it (`config.init_heads`): what
the new images do not contradict stays known. (The logistic regression of scikit-learn
has no v.) The result is a dense layer: all that a network of the kind 'linear' learns,
or what FDFtNet adds to its own logits (`config.model.regression`). Either is
calibrated, evaluated and exported like any other network.

Where windows of images are trained on that are smaller than what is scored, the
regression is fitted to nine of them, too, which weigh as much as their image. Each is
cut out of another version of the image, compressed and scaled as in a training: it
finds more then (docs/results.md).
"""

import functools
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections
import numpy as np
from scipy import optimize, special
from tqdm import tqdm

import fdftnet_jax
from fdftnet_jax import files, parallel
from fdftnet_jax.data import caches, pipeline, preprocess
from fdftnet_jax.errors import UserError
from fdftnet_jax.models import registry
from fdftnet_jax.training import feed, processes, setup, steps

# C of one feature. The k standardised features of an image have a squared norm near k,
# so that C = PENALTY / k weighs the same for any k. From a third to three times of it
# the AUROC on other pictures is level (docs/results.md); how sure the scores are is set
# by the calibration.
PENALTY = 500.0
# Windows of an image along each axis.
_GRID = 3
# The most rows that are fitted, those of windows among them: all features are held in
# memory, four times over; 70 kB a row of the largest. The seed draws the images.
_MOST = 20_000
# Of a network's description: what the features depend on.
_OF_FEATURES = ("backbone", "variant", "taps", "block_taps", "dtype")
Checked = Callable[[Iterable[pipeline.Example]], Iterable[pipeline.Example]]


def fit(
    config: ml_collections.ConfigDict, training: setup.Training, checked: Checked
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Fits the dense layer on the features of the training images.

    Args:
      config: all fields of `training/defaults.py`.
      training: of a network of the kind 'linear', or of FDFtNet with a regression.
      checked: passes batches on, until a signal stops the training.

    Returns:
      `kernel` [features, 2] and `bias` [2] of the layer; and the sums `loss` (nats),
      `correct` and `count` over the images that were fitted.
    """
    data, images = training.data, training.images
    rows = np.arange(data.num_images())
    if len(rows) > _MOST:
        rows = np.sort(np.random.default_rng(config.seed).permutation(rows)[:_MOST])
    smaller = training.record.preprocessing.train_size > 0
    windows = _GRID**2 if smaller and len(rows) * (1 + _GRID**2) <= _MOST else 0
    labels = feed.labels(data.train)[rows]
    weights = np.asarray(images.class_weights)[labels]
    # (Batches with as many of each class, too, count both the same.)
    if config.class_balance == "batches":
        weights = np.asarray(feed.class_weights(data, "weights"))[labels]
    pooled = cached_features(config, training, rows, checked)
    start = None
    if config.init_heads:
        params = training.state.params
        layer = params.get("regression", params)["classifier"]
        kernel, bias = layer["kernel"], layer["bias"]
        start = (kernel[:, 1] - kernel[:, 0]).astype(float), float(bias[1] - bias[0])
    processes.say(
        f"logistic regression on {pooled.shape[1]:,} features of {len(labels):,} images"
        + f" and {windows} windows of each" * (windows > 0)
        + f", from the coefficients in {config.init_from}" * (start is not None)
    )
    features, of_each, shares = pooled, labels, weights
    if windows:
        features = np.concatenate(
            [pooled, cached_features(config, training, rows, checked, windows=True)]
        )
        of_each = np.concatenate([labels, np.repeat(labels, windows)])
        shares = np.concatenate([weights, np.repeat(weights / windows, windows)]) / 2
    w, b = solve(features, of_each, shares, start)
    # The log odds of fake are the difference of the two logits.
    kernel = np.stack([-w / 2, w / 2], -1).astype(np.float32)
    bias = np.array([-b / 2, b / 2], np.float32)
    odds = pooled @ w + b
    sums = {
        "loss": float(np.logaddexp(0, np.where(labels == 1, -odds, odds)).sum()),
        "correct": float(np.sum((odds >= 0) == (labels == 1))),
        "count": float(len(labels)),
    }
    return {"kernel": kernel, "bias": bias}, sums


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    start: tuple[np.ndarray, float] | None = None,
) -> tuple[np.ndarray, float]:
    """Finds the minimum of the penalised loss.

    Args:
      features: [n, k].
      labels: [n] 0 and 1, both present.
      weights: [n] of the images in the loss.
      start: v [k], which the penalty pulls w to, and an intercept; None is zero.

    Returns:
      w [k] and b; `features @ w + b` are the log odds of label 1.

    Raises:
      UserError: a feature is not finite.
    """
    mean = np.mean(features, 0, np.float64)
    if not np.isfinite(mean).all():
        raise UserError(
            "expected finite features of the backbone, found some that are not; start "
            "from other weights (--config.init_from)"
        )
    deviation = np.std(features, 0, np.float64)
    count = features.shape[1]
    before, intercept = (np.zeros(count), 0.0) if start is None else start
    sign = np.where(labels == 1, 1.0, -1.0)
    # (In the precision of the features, of which a copy takes gigabytes.)
    margin_before = sign * (features @ before.astype(features.dtype) + intercept)
    # A feature that is the same in all images says nothing.
    varies = deviation > 1e-6 * (1 + np.abs(mean))
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    standardised = features - mean
    standardised *= scale

    def loss(change: np.ndarray) -> tuple[float, np.ndarray]:
        """The sum and its gradient by the change of w, standardised, and of b."""
        moved = change[:-1]
        margin = margin_before + sign * (standardised @ moved + change[-1])
        residual = -weights * sign * special.expit(-margin)
        slope = np.append(
            standardised.T @ residual + moved * count / PENALTY, residual.sum()
        )
        penalty = moved @ moved * count / (2 * PENALTY)
        return weights @ np.logaddexp(0, -margin) + penalty, slope

    found = optimize.minimize(
        loss,
        np.zeros(count + 1),
        jac=True,
        method="L-BFGS-B",
        # The log odds are right to 0.001 then.
        options={"maxiter": 5000, "ftol": 1e-9, "gtol": 1e-6},
    )
    change = found.x[:-1] * scale
    return before + change, intercept + found.x[-1] - change @ mean


def cached_features(
    config: ml_collections.ConfigDict,
    training: setup.Training,
    rows: np.ndarray,
    checked: Checked,
    windows: bool = False,
) -> np.ndarray:
    """The features of the training images, from the cache if they were computed before.

    Those of a backbone MODULE:ATTRIBUTE are not kept, for its code may change, nor are
    those of windows, which are many times as large.

    Args:
      config: as for `fit`.
      training: as for `fit`.
      rows: [n] of the training source.
      checked: as for `fit`.
      windows: of which nine of each image are taken in place of the views that are
        scored.

    Returns:
      [n, features] float32: what the dense layer sees of these images, averaged over
      the views of an image; or [n * 9, features], a window after the other.
    """
    record, data = training.record, training.data
    model, view = record.model, record.preprocessing
    params, batch_stats = training.state.params, training.state.batch_stats
    if model["kind"] == "fdftnet":
        params = params["regression"]
        batch_stats = batch_stats.get("regression", {})
        model = {**registry.regression(model), "dtype": model["dtype"]}
    variables = {
        "params": {"backbone": params["backbone"]},
        "batch_stats": {"backbone": batch_stats.get("backbone", {})},
    }
    digest = hashlib.sha256()
    parts = {
        "version": fdftnet_jax.__version__,
        "model": {key: model[key] for key in _OF_FEATURES},
        # Another number tells of other code, too.
        "features": len(params["classifier"]["kernel"]),
        "view": view.to_dict(),
        "data": [data.own.fingerprint, data.replay],
    }
    digest.update(json.dumps(parts, sort_keys=True).encode())
    for part in data.train:
        digest.update(part.indices.astype(np.int64).tobytes())
    digest.update(rows.astype(np.int64).tobytes())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    cache = caches.cache_dir(config.data.cache_dir)
    path = cache / "features" / f"{digest.hexdigest()[:32]}.npy"
    kept = ":" not in model["backbone"] and not windows
    if kept and path.is_file():
        processes.say(f"features of {len(rows):,} images: read from {path}")
        return np.load(path)
    module = registry.build(model).clone(num_classes=None)
    apply = registry.computing_in(model["dtype"], module.apply)
    # (Shown on a terminal only.)
    with tqdm(total=len(rows), unit="img", disable=None) as bar:
        seen = functools.partial(_windows, config, view) if windows else view
        batches = checked(training.images.train_batches_in_order(rows, seen))
        mean = not windows
        pooled = compute(apply, variables, batches, view.scaling, bar.update, mean)
    pooled = pooled[: len(rows)].reshape(-1, pooled.shape[-1])
    if kept:
        content = io.BytesIO()
        np.save(content, pooled)
        with caches.writing("features", cache):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(path, content.getvalue())
    return pooled


def _windows(
    config: ml_collections.ConfigDict, view: preprocess.Preprocessing, image: np.ndarray
) -> np.ndarray:
    """Windows evenly from edge to edge, each of another version of the image.

    The versions are a function of the seed and the pixels.

    Args:
      config: as for `fit`.
      view: of 'crops'.
      image: [h, w, 3] uint8 RGB.

    Returns:
      [9, side, side, 3] uint8 RGB, as large as those that are trained on.
    """
    rng = np.random.default_rng([config.seed, zlib.crc32(image.tobytes())])
    drawn = feed.corruptions_of(config)
    number = _GRID**2
    return np.stack(
        [view.train_grid(drawn(image, rng), _GRID)[i] for i in range(number)]
    )


def compute(
    apply: Callable[..., jax.Array],
    variables: Any,
    batches: Iterable[pipeline.Example],
    scaling: str,
    progress: Callable[[int], Any] = lambda count: None,
    mean: bool = True,
) -> np.ndarray:
    """Computes features on all local devices, in one process.

    Args:
      apply: `(variables, images, train=) -> [b, features]`.
      variables: `params` and `batch_stats`.
      batches: as `pipeline.eval_batches` yields them.
      scaling: of the pixels (see `preprocess.scale`).
      progress: is told the number of images of each batch.
      mean: whether the views of an image are averaged.

    Returns:
      [images, features] float32, or [images, views, features]; the last rows are those
      of the filling.
    """
    p_step = pmap_step(apply, scaling, mean)
    variables = steps.replicate(variables)

    def features(batch: pipeline.Example) -> jax.Array:
        return p_step(variables, steps.shard({"image": batch["image"]})["image"])

    rows = []
    for pooled in parallel.scored(features, np.asarray, batches):
        rows.append(pooled.reshape(-1, *pooled.shape[2:]))
        progress(len(rows[-1]))
    return np.concatenate(rows)


def pmap_step(apply: Callable[..., jax.Array], scaling: str, mean: bool = True):
    """The pmapped `(variables, images [b, ..., h, w, 3]) -> [b, features]`.

    Args:
      apply: as for `compute`.
      scaling: as for `compute`.
      mean: as for `compute`; without, it returns [b, views, features].
    """

    def step(variables, images):
        shape = images.shape
        flat = preprocess.scale(images.reshape(-1, *shape[-3:]), scaling)
        pooled = apply(variables, flat, train=False)
        pooled = pooled.reshape(shape[0], -1, pooled.shape[-1])
        return pooled.mean(1) if mean else pooled

    return jax.pmap(step, axis_name=steps.AXIS, devices=jax.local_devices())
