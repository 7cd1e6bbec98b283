"""Figures of a detector with intervals, calibration, and the scoring of a split."""
