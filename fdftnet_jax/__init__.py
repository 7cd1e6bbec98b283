"""FDFtNet in JAX and Flax: adapt a face-forgery detector from a few hundred images."""

__version__ = "0.1.0"
