"""Metrics of a detector and the scoring of a split."""
