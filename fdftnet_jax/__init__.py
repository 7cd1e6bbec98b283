"""FDFtNet in JAX and Flax: adapt a face-forgery detector from a few hundred images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdftnet_jax.detector.detector import load

__version__ = "0.2.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # JAX starts with the first use, not with the import of the package.
    if name == "load":
        from fdftnet_jax.detector.detector import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
