"""Headless Chromium, driven through a pipe by the DevTools protocol."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
# Seconds without a word, after which the browser hangs.
_PATIENCE = 60
# Key events of the protocol.
KEYS = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {
        "key": "Enter",
        "code": "Enter",
        "windowsVirtualKeyCode": 13,
        "text": "\r",
    },
}


def find():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page of a browser; `messages` is what its console said and what it fetched.

    Chromium reads commands from file 3 and answers to file 4, JSON ended by a zero.
    """

    def __init__(self, executable):
        self.messages = []
        self.fetched = []
        self._number = 0
        self._session = None
        self._loaded = False
        self._home = tempfile.mkdtemp(prefix="browser-")
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # Its files 3 and 4, whatever numbers the pipes have here.
        script = f'exec "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            [
                *("bash", "-c", script, "bash", executable, *_FLAGS),
                *(f"--user-data-dir={self._home}/profile", "about:blank"),
            ],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._home},
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._answers = os.fdopen(self._read, "rb")
        self._rest = b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """The result of a command; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _next(self):
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], _PATIENCE)[0], "no answer"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, event):
        method, found = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.fetched.append(found["request"]["url"])
        elif method == "Log.entryAdded":
            self.messages.append(found["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.messages.append(json.dumps(found))

    def open(self, path, width, height=740):
        """Shows a file at a width, and waits until all of it is there."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self._loaded = False
        self.send("Page.navigate", url=Path(path).absolute().as_uri())
        while not self._loaded:
            self._note(self._next())
        # Pictures are drawn, and a policy's complaints are told.
        self.value("Promise.all([...document.images].map(i => i.decode()))", wait=True)

    def value(self, expression, *, wait=False):
        """The value of an expression of JavaScript."""
        found = self.send(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=wait,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key):
        """Presses a key of `KEYS`."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **KEYS[key])

    def screenshot(self, *, whole=False):
        """The PNG of the window, or of the whole page."""
        found = self.send(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole
        )
        return base64.b64decode(found["data"])

    def pdf(self):
        """The page as it is printed."""
        found = self.send("Page.printToPDF", printBackground=True, paperWidth=8.27)
        return base64.b64decode(found["data"])

    def close(self):
        """Ends the browser and drops its profile."""
        os.close(self._write)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._answers.close()
        shutil.rmtree(self._home, ignore_errors=True)
