"""Freezing, optimiser, pmapped steps, checkpoints and the training loop."""
