"""Flax modules of the networks, one architecture a file."""

from fdftnet_jax.models.fdftnet import FDFtNet
from fdftnet_jax.models.registry import build, get_backbone, register_backbone

__all__ = ["FDFtNet", "build", "get_backbone", "register_backbone"]
