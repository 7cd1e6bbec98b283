"""Folders of stub images, and preparations of them in other processes."""

import subprocess
import sys
from pathlib import Path

from PIL import Image


def colour(label, index):
    """A colour that tells every stub image from the others."""
    return (100 * label, index % 256, index // 256 % 256)


def write_folder(root, number=12, split="", first=0):
    for label, name in enumerate(("real", "fake")):
        folder = root / split / name / ("gan" if label else "")
        folder.mkdir(parents=True)
        for i in range(number):
            image = Image.new("RGB", (5 + i, 7), colour(label, first + i))
            image.save(folder / f"{i:02d}.png")


def entries(data):
    """The finished data sets in the cache of a config section."""
    return set(Path(data.cache_dir).rglob("dataset_info.json"))


def start(script, data):
    """Starts a script on a config section in a process of its own."""
    script = f"""
import os, sys, ml_collections
from fdftnet_jax import datasets
from fdftnet_jax.data import folder
data = ml_collections.ConfigDict({data.to_dict()})
{script}"""
    command = [sys.executable, "-c", script]
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
    )


def run(script, data):
    """Runs it to its end: exit status, stdout and stderr."""
    process = start(script, data)
    out, err = process.communicate()
    return process.returncode, out, err
