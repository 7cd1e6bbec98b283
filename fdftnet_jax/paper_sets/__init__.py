"""The data sets of the paper: how their folders are laid out and split."""
