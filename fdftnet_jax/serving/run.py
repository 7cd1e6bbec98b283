"""Does the work of `fdftnet serve`, from its options to its end."""

import argparse
import dataclasses
import importlib.util
import os
import socket
import sys
import webbrowser
from typing import Any

import fdftnet_jax
from fdftnet_jax import launch
from fdftnet_jax.errors import UserError
from fdftnet_jax.files import printable

# Packages of the extra, by the names that they are imported by.
_PACKAGES = ("starlette", "uvicorn", "python_multipart")
# Seconds that requests have to end when the server stops.
_GRACE = 3


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the command; see its help."""

    detector: str
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    root: str | None = None
    corrections: str | None = None
    faces: str = "auto"
    program: bool = False
    no_open: bool = False

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Options":
        """Takes the parsed arguments of the command."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(arguments, name) for name in names})


def serve(options: Options) -> int:
    """Serves until a signal ends it.

    Args:
      options: of the command.

    Returns:
      0.

    Raises:
      UserError: a package, the token or the root is missing, the detector cannot be
        used, or the port is taken.
      Interrupted: at Ctrl-C.
    """
    check_packages()
    from fdftnet_jax.serving import app, corrections, engine, guard, uploads

    asks = guard.Guard(options.host, options.token)
    if options.root is not None and not os.path.isdir(options.root):
        raise UserError(
            f"expected --root to be a folder, found none at {options.root}; give one, "
            "or leave it out"
        )
    kept = options.corrections and corrections.Corrections(options.corrections)
    with listen(options.host, options.port) as listening:
        launch.say(f"reading {options.detector}")
        detector = fdftnet_jax.load(options.detector, program=options.program)
        server = app.Server(
            engine=engine.Engine(detector, faces=options.faces),
            store=uploads.Store(),
            guard=asks,
            detector=options.detector,
            root=options.root,
            corrections=kept or None,
        )
        try:
            address = _address(options, listening)
            name = printable(str(detector.card["name"]))
            launch.say(f"{name} judges at {address} (Ctrl-C ends it)")
            if not options.no_open and _has_screen():
                webbrowser.open(address)
            http_server(server).run(sockets=[listening])
        finally:
            server.close()
    return 0


def http_server(server: Any) -> Any:
    """Makes the `uvicorn.Server` of an `app.Server`."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig, frame):
            # Requests end at once; nobody waits for a video of ten minutes.
            server.engine.stopping = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        server.app(),
        # (It would write the token of the page's address down.)
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        ws="none",
    )
    return Server(config)


def check_packages() -> None:
    """Raises UserError where a package of the extra is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"`fdftnet serve` needs {', '.join(missing)}, which the package alone does "
            "not bring; give pip install 'fdftnet_jax[serve]'"
        )


def listen(host: str, port: int) -> socket.socket:
    """Opens the port; raises UserError where that fails.

    Args:
      host: the address to listen on.
      port: of it; 0 for one that is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not 0 <= port < 2**16:
            raise OSError(None, "there is no such port")
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot listen on port {port} of {host}: {reason}; give another --port"
        ) from error


def _address(options: Options, listening: socket.socket) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    # Every address of a machine is none that a browser can open.
    host = {"0.0.0.0": "localhost", "[::]": "localhost"}.get(host, host)
    token = f"?token={options.token}" if options.token else ""
    return f"http://{host}:{listening.getsockname()[1]}/{token}"


def _has_screen() -> bool:
    # Without one, a browser for terminals would take this terminal.
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
