"""Metrics of a detector with intervals, calibration, robustness, scoring of a split."""
