"""Weights from elsewhere: files of Keras and PyTorch."""
