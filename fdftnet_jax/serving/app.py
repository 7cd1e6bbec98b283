"""The server's addresses: the page, the API, and what guards them.

    GET  /                  the page
    POST /v1/predict        files, or paths below --root: what `predict --json` writes
    POST /v1/explain        a file: what the network saw of it, and what file it is
    POST /v1/report         a file: all of that on a page to print
    GET  /v1/progress       how far the reading of a video is
    POST /v1/corrections    a file and its right label, with --corrections
    GET  /v1/detector       the detector's card
    GET  /openapi.json      all of this for programs
    GET  /healthz, /readyz  whether the server lives, and whether it takes files

An error is JSON with one sentence, `error`, and says nothing of the machine.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fdftnet_jax.errors import UserError
from fdftnet_jax.files import WriteError
from fdftnet_jax.prediction import inputs, writers
from fdftnet_jax.prediction.inputs import Item
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.prediction.run import Tally
from fdftnet_jax.serving import case_report, guard, openapi, page, uploads
from fdftnet_jax.serving.case import Case
from fdftnet_jax.serving.corrections import Corrections
from fdftnet_jax.serving.engine import Engine, FullError, Job
from fdftnet_jax.serving.guard import Guard
from fdftnet_jax.serving.uploads import Store, UploadError

# Seconds after which a client whom the queue had no room for may try again.
_RETRY = "5"
# Seconds between two looks at whether the client is still there.
_LOOK = 0.5
# Seconds between two looks for uploads that are too old.
_SWEEP = 60
# Bytes of a request in JSON.
_LONGEST_JSON = 2**20
# Characters of a name that a client gives its request, to ask for its progress.
_LONGEST_TICKET = 64
# Addresses that need no token: they say nothing.
_PROBES = ("/healthz", "/readyz")
_OUTSIDE = "outside of the folder that this server may read"
Result = TypeVar("Result")


class _RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Server:
    """What the addresses work with.

    Attributes:
      engine: judges.
      store: takes uploads.
      guard: says who may ask.
      detector: how the user named the detector, for the page's commands.
      root: the folder that paths of requests lie below; None refuses them.
      corrections: takes them; None where none are kept.
      running: the work that clients may ask the progress of, by their tickets.
    """

    engine: Engine
    store: Store
    guard: Guard
    detector: str
    root: str | None = None
    corrections: Corrections | None = None
    running: dict[str, Sequence[Job[Any]]] = dataclasses.field(default_factory=dict)

    def app(self) -> ASGIApp:
        """Makes the application."""
        static = StaticFiles(packages=[("fdftnet_jax.serving", "static")])
        routes = [
            Route("/", self.page),
            Route("/v1/predict", self.predict, methods=["POST"]),
            Route("/v1/explain", self.explain, methods=["POST"]),
            Route("/v1/report", self.report, methods=["POST"]),
            Route("/v1/progress", self.progress),
            Route("/v1/detector", self.card),
            Route("/openapi.json", self.openapi),
            Route("/healthz", lambda _: PlainTextResponse("ok")),
            Route("/readyz", self.readyz),
            Mount("/static", static),
        ]
        if self.corrections is not None:
            route = Route("/v1/corrections", self.correct, methods=["POST"])
            routes.append(route)
        app = Starlette(
            routes=routes,
            exception_handlers={
                _RefusedError: _refused,
                UploadError: _refused,
                FullError: _full,
                ClientDisconnect: _refused,
                404: _not_found,
                405: _not_found,
                Exception: _unexpected,
            },
            lifespan=self._lifespan,
        )
        # Around all of it, so that errors have the headers, too.
        return _Guarded(app, self.guard)

    def close(self) -> None:
        """Ends the engine, and deletes what was sent."""
        self.engine.close()
        self.store.close()

    async def page(self, request: Request) -> Response:
        """Shows the page; `?token=` becomes a cookie, and leaves the address."""
        token = request.query_params.get("token")
        if token is None:
            return HTMLResponse(page.render(self))
        answer = RedirectResponse("/", status_code=303)
        if self.guard.has_token:
            answer.set_cookie(
                guard.COOKIE,
                self.guard.cookie,
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return answer

    async def predict(self, request: Request) -> Response:
        """Judges the files of a form, or those that JSON names."""
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() == "application/json":
            paths = _paths(await _body(request, _LONGEST_JSON))
            tally = Tally()
            found = await asyncio.to_thread(self._below_root, paths, tally)
            return await self._judged(request, found, tally)
        if not self.engine.ready:
            raise FullError
        async with self._form(request) as form:
            if not form.files:
                raise _RefusedError(400, "expected one file or more, found none")
            found = [(upload.name, _item(upload.path)) for upload in form.files]
            return await self._judged(request, found, Tally())

    async def explain(self, request: Request) -> Response:
        """Shows a file closer: see `case`."""
        async with self._form(request) as form:
            found = await self._examined(request, form)
            return JSONResponse(await asyncio.to_thread(case_report.as_json, found))

    async def report(self, request: Request) -> Response:
        """Makes the report of a file, a page that stands for itself."""
        async with self._form(request) as form:
            found = await self._examined(request, form)
            name, engine = form.files[0].name, self.engine
            text = await asyncio.to_thread(
                case_report.render, found, name, engine.header, engine.detector.card
            )
            # (It is no page of this server: its style stands in it.)
            headers = {"Content-Disposition": 'attachment; filename="report.html"'}
            return HTMLResponse(text, headers=headers)

    async def progress(self, request: Request) -> Response:
        """Says how many frames of a video have been read; 0 before it begins."""
        jobs = self.running.get(request.query_params.get("ticket", ""), [])
        controls = [job.control for job in jobs if not job.result.done()]
        begun = (control for control in controls if control.frame)
        if control := next(begun, None):
            return JSONResponse({"frame": control.frame, "total": control.total})
        return JSONResponse({"frame": 0, "total": 0})

    async def correct(self, request: Request) -> Response:
        """Keeps a file under the label that a person gives it."""
        corrections = self.corrections
        assert corrections is not None
        async with self._form(request) as form:
            upload = _only(form)
            label = form.fields.get("label", "none")
            try:
                path = await asyncio.to_thread(corrections.keep, upload, label)
            except WriteError as error:
                raise _RefusedError(507, uploads.DISK_FULL) from error
            except UserError as error:
                raise _RefusedError(400, str(error)) from error
            return JSONResponse({"path": path, "kept": corrections.count()})

    async def card(self, _: Request) -> Response:
        """Gives the card, as `fdftnet show --json` prints it."""
        detector = self.engine.detector
        return JSONResponse({"sha256": detector.digest, **detector.card})

    async def openapi(self, _: Request) -> Response:
        """Describes the server to programs."""
        with_corrections = self.corrections is not None
        described = openapi.describe(self.store.limits, corrections=with_corrections)
        return JSONResponse(described)

    async def readyz(self, _: Request) -> Response:
        """Says whether a file would be taken now."""
        if self.engine.ready:
            return PlainTextResponse("ready")
        return PlainTextResponse("busy", 503, headers={"Retry-After": _RETRY})

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP)
                await asyncio.to_thread(self.store.delete_old)

        sweeping = asyncio.create_task(sweep())
        try:
            yield
        finally:
            sweeping.cancel()

    @contextlib.asynccontextmanager
    async def _form(self, request: Request) -> AsyncIterator[uploads.Form]:
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.store.limits.size:
            raise uploads.too_large(self.store.limits)
        kind = request.headers.get("content-type", "")
        async with self.store.form(kind, request.stream()) as form:
            yield form

    def _below_root(self, paths: Sequence[str], tally: Tally) -> list[tuple[str, Item]]:
        """What paths below the root stand for: each file's name and item."""
        if self.root is None:
            raise _RefusedError(403, "this server was started without --root")
        root = Path(os.path.realpath(self.root))
        found: list[tuple[str, Item]] = []
        most = self.store.limits.number
        for path in paths:
            real = os.path.realpath(os.path.join(root, path))
            if not Path(real).is_relative_to(root):
                raise _RefusedError(403, f"a path is {_OUTSIDE}")
            if not os.path.lexists(real):
                found.append((path, Item(path, "", "No such file or directory")))
                continue
            items = inputs.expand([real], skipped=tally.skipped)
            for item in itertools.islice(items, most + 1):
                name = path + item.path.removeprefix(real)
                # Below a folder, links may lead elsewhere.
                if not Path(os.path.realpath(item.path)).is_relative_to(root):
                    item = Item(item.path, "", f"it is {_OUTSIDE}")
                found.append((name, item))
            if len(found) > most:
                raise _RefusedError(413, f"expected at most {most} files at a time")
        return found

    async def _judged(
        self, request: Request, found: Sequence[tuple[str, Item]], tally: Tally
    ) -> Response:
        """Judges files and answers."""
        jobs = self.engine.submit([item for _, item in found])
        judged = await self._results(request, jobs)
        rows: list[Row] = []
        for (name, item), (of_file, _) in zip(found, judged, strict=True):
            own = [_renamed(row, item.path, name) for row in of_file]
            tally.add(own)
            rows += own
        summary = {**tally.summary(), "complete": True}
        results = [writers.plain(row) for row in rows]
        return JSONResponse(
            {**self.engine.header, "results": results, "summary": summary}
        )

    async def _examined(self, request: Request, form: uploads.Form) -> Case:
        upload = _only(form)
        job = self.engine.examine(_item(upload.path))
        (found,) = await self._results(request, [job])
        rows = [_renamed(row, upload.path, upload.name) for row in found.rows]
        return dataclasses.replace(found, rows=rows)

    async def _results(
        self, request: Request, jobs: Sequence[Job[Result]]
    ) -> list[Result]:
        """Waits for work on files; gives it up where the client has gone."""
        ticket = request.query_params.get("ticket", "")[:_LONGEST_TICKET]
        if ticket:
            self.running[ticket] = jobs
        try:
            await self._wait(request, jobs)
        finally:
            self.running.pop(ticket, None)
            # (What is done is left alone. The files must not be deleted before.)
            for job in jobs:
                job.cancel()
            await _finished(jobs)
        return [job.result.result() for job in jobs]

    async def _wait(self, request: Request, jobs: Sequence[Job[Any]]) -> None:
        """Waits until work is done; raises ClientDisconnect where nobody waits."""
        waiting = {asyncio.wrap_future(job.result) for job in jobs}
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=_LOOK)
            for result in done:
                # (What nobody looks at would be complained of.)
                _ = result.cancelled() or result.exception()
            if waiting and self.engine.stopping:
                raise _RefusedError(503, "the server is stopping")
            if waiting and await request.is_disconnected():
                raise ClientDisconnect


class _Guarded:
    """Refuses what the guard does, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, guard: Guard):
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(guard.HEADERS)
            await send(message)

        answer: ASGIApp = self._refusal(scope) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        connection = HTTPConnection(scope)
        headers: Headers = connection.headers
        if not self._guard.right_host(headers.get("host", "")):
            return _error(421, "this server does not go by that name")
        changes = scope["method"] not in ("GET", "HEAD")
        if changes and not self._guard.right_origin(headers):
            return _error(403, "a page of another site may not ask this")
        if scope["path"] in _PROBES:
            return None
        if scope["path"] == "/" and self._guard.right_token(
            connection.query_params.get("token", "")
        ):
            return None
        if self._guard.known(headers, connection.cookies):
            return None
        if scope["path"] == "/":
            return PlainTextResponse(
                "This server wants its token: open the address that `fdftnet serve` "
                "printed, which ends in ?token=...\n",
                401,
            )
        answer = _error(401, "expected the header Authorization: Bearer TOKEN")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer


def _only(form: uploads.Form) -> uploads.Upload:
    if len(form.files) != 1:
        raise _RefusedError(400, "expected one file")
    return form.files[0]


async def _finished(jobs: Sequence[Job[Any]]) -> None:
    """Waits until nothing reads the files any more."""
    while not all(job.result.done() for job in jobs):
        await asyncio.sleep(0.05)


async def _body(request: Request, most: int) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise _RefusedError(413, f"expected at most {most} bytes of JSON")
    return body


def _paths(body: bytes) -> list[str]:
    try:
        paths = json.loads(body)["paths"]
    except (ValueError, KeyError, TypeError, RecursionError):
        paths = None
    usable = isinstance(paths, list) and paths
    if not usable or not all(isinstance(p, str) and p and "\0" not in p for p in paths):
        raise _RefusedError(400, 'expected JSON such as {"paths": ["a.jpg"]}')
    try:
        for path in paths:
            os.fsencode(path)
    except UnicodeEncodeError as error:
        raise _RefusedError(400, "a path is no text") from error
    return paths


def _item(path: str) -> Item:
    return next(inputs.expand([path]))


def _renamed(row: Row, path: str, name: str) -> Row:
    """Names the file in a row as its sender does."""
    return row._replace(path=name, reason=row.reason.replace(path, name))


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


async def _refused(_: Request, error: Exception) -> Response:
    return _error(getattr(error, "status", 400), str(error))


async def _full(_: Request, error: Exception) -> Response:
    answer = _error(503, "too many files wait already: try again later")
    answer.headers["Retry-After"] = _RETRY
    return answer


async def _not_found(_: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _unexpected(_: Request, error: Exception) -> Response:
    # The client learns nothing of the machine; its owner reads the traceback there.
    return _error(500, "unexpected error; the server's terminal says more")
