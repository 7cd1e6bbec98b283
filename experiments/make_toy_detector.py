"""Makes the detector that the package carries, from nothing but its toy pictures.

    python -m experiments.make_toy_detector [--workdir=runs/toy_detector]

Trains twice, calibrates, evaluates, and writes WORKDIR/toy.safetensors, which is
`fdftnet_jax/detector/toy.safetensors` where the network, the toy or the format of the
file has changed. Run again, it goes on where it stopped.
"""

from pathlib import Path

from absl import flags

from experiments import grid, launch

_WORKDIR = flags.DEFINE_string("workdir", "runs/toy_detector", "Folder of the runs.")


def main() -> None:
    """Trains, scores and exports."""
    from fdftnet_jax.detector import export
    from fdftnet_jax.evaluation import calibration, results, scoring
    from fdftnet_jax.run import Run
    from fdftnet_jax.training import loop

    config, workdir = flags.FLAGS.config, Path(_WORKDIR.value)
    grid.check_workdir(workdir, config, replace=False)
    base, fdftnet = workdir / "base", workdir / "fdftnet"
    loop.train_and_evaluate(config.pretrain, str(base))
    fine_tuning = config.finetune.copy_and_resolve_references()
    fine_tuning.init_from = str(base)
    loop.train_and_evaluate(fine_tuning, str(fdftnet))
    run = Run(fdftnet)
    scores = scoring.score_split(run, "test")
    calibrated = calibration.for_run(run)
    report = results.report(scores, calibrated)
    results.write(report, scores, calibrated, run)
    path = workdir / "toy.safetensors"
    licence = "Drawn and trained by the package alone: Apache-2.0, as its code."
    export.write(
        run,
        path,
        name="toy",
        licence=licence,
        toy=True,
        half=True,
        replace=True,
    )
    auc = report["figures"]["auc"]["value"]
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB, AUROC on test {auc:.4f}")


if __name__ == "__main__":
    launch.run(main, "configs/toy_detector.py")
