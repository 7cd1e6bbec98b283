"""Configurations of the experiments, one function `get_config` a file."""
