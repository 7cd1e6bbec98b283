"""Faces: found in pictures and videos, and cut out of them."""
