"""Other programs that are measured beside this package: commands that print a rate."""

import json
import shlex
import subprocess
from pathlib import Path

from fdftnet_jax.errors import UserError

_SECONDS = 200


class PeerError(Exception):
    """A peer gave no rate; says why."""


def read(path: str) -> dict[str, str]:
    """Reads the JSON file of names and commands.

    Raises:
      UserError: it is no such file.
    """
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the peers in {path}: {error}") from error
    if not isinstance(found, dict) or not all(
        isinstance(command, str) for command in found.values()
    ):
        raise UserError(f"expected a JSON object of names and commands in {path}")
    return found


def images_per_second(command: str) -> float:
    """Runs a peer and returns its rate.

    Args:
      command: its last line is, or a JSON object there has as `images_per_second`, a
        number.

    Raises:
      PeerError: it failed, took too long, or printed no number.
    """
    try:
        done = subprocess.run(
            shlex.split(command),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise PeerError(str(error)) from error
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return float(found["images_per_second"] if isinstance(found, dict) else found)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        lines = done.stderr.strip().splitlines() or ["it printed no number"]
        raise PeerError(lines[-1]) from error
