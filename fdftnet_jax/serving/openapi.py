"""Describes the server to programs, as OpenAPI 3.1."""

from typing import Any

import fdftnet_jax
from fdftnet_jax.prediction.results import Row
from fdftnet_jax.serving.uploads import Limits

_NUMBERS = ("score", "logit", "probability", "deviation")
_TEXTS = ("path", "kind", "verdict", "reason", "notes")
_FILE = {"type": "string", "format": "binary"}
_TICKET = {
    "name": "ticket",
    "in": "query",
    "description": "A name that nobody else gives, to ask for the progress by.",
    "schema": {"type": "string"},
}


def describe(limits: Limits, *, corrections: bool) -> dict[str, Any]:
    """Describes every address, what it takes and what it answers.

    Args:
      limits: of the uploads.
      corrections: whether the server keeps them.
    """
    files = {"type": "array", "items": _FILE, "maxItems": limits.number}
    paths: dict[str, Any] = {
        "/v1/predict": {
            "post": {
                "summary": "Judge pictures and videos",
                "description": "Files in a form, or paths below the server's --root.",
                "parameters": [_TICKET],
                "requestBody": {
                    "required": True,
                    "content": {
                        "multipart/form-data": {"schema": _object({"files": files})},
                        "application/json": {
                            "schema": _object(
                                {"paths": {"type": "array", "items": _type("string")}}
                            )
                        },
                    },
                },
                "responses": {
                    "200": _json("What `fdftnet predict --json` writes", _document()),
                    **_errors(400, 403, 413, 415, 503, 507),
                },
            }
        },
        "/v1/explain": _of_a_file(
            "Show what the network saw of a file, and what kind of file it is",
            _json("Pictures are data URIs", {"type": "object"}),
        ),
        "/v1/report": _of_a_file(
            "Make a page of one file's results, to keep and to print",
            {"description": "The page", "content": {"text/html": {}}},
        ),
        "/v1/progress": {
            "get": {
                "summary": "How far the reading of a video is",
                "parameters": [_TICKET],
                "responses": {
                    "200": _json(
                        "0 before it begins, and where nothing goes by that ticket",
                        _object({"frame": _type("integer"), "total": _type("integer")}),
                    )
                },
            }
        },
        "/v1/detector": {
            "get": {
                "summary": "The card of the detector",
                "responses": {"200": _json("The card", {"type": "object"})},
            }
        },
        "/healthz": {"get": _probe("Whether the server answers")},
        "/readyz": {"get": _probe("Whether it would take a file now")},
    }
    if corrections:
        label = {"type": "string", "enum": ["real", "fake", ""]}
        form = _object({"label": label, "file": _FILE})
        kept = _object({"real": _type("integer"), "fake": _type("integer")})
        paths["/v1/corrections"] = {
            "post": {
                "summary": "Say what a file really is; an empty label takes it back",
                "requestBody": {
                    "required": True,
                    "content": {"multipart/form-data": {"schema": form}},
                },
                "responses": {
                    "200": _json(
                        "Where it is, and how many there are",
                        _object({"path": _type("string"), "kept": kept}),
                    ),
                    **_errors(400, 413, 415, 507),
                },
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "fdftnet serve", "version": fdftnet_jax.__version__},
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}
        },
        "security": [{"token": []}, {}],
    }


def _of_a_file(summary: str, answer: dict[str, Any]) -> dict[str, Any]:
    form = {"multipart/form-data": {"schema": _object({"file": _FILE})}}
    return {
        "post": {
            "summary": summary,
            "parameters": [_TICKET],
            "requestBody": {"required": True, "content": form},
            "responses": {"200": answer, **_errors(400, 413, 415, 503, 507)},
        }
    }


def _document() -> dict[str, Any]:
    fields = {
        name: _type("string")
        if name in _TEXTS
        else {"type": ["number" if name in _NUMBERS else "integer", "null"]}
        for name in Row._fields
    }
    whole = {"type": "object"}
    return _object(
        {
            "schema_version": _type("integer"),
            "fdftnet_jax": _type("string"),
            "detector": whole,
            "threshold": whole,
            "faces": _type("string"),
            "results": {"type": "array", "items": _object(fields)},
            "summary": whole,
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


def _type(name: str) -> dict[str, Any]:
    return {"type": name}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"description": description, "content": content}


def _errors(*codes: int) -> dict[str, Any]:
    schema = _object({"error": _type("string")})
    return {str(code): _json("Why it was refused", schema) for code in codes}


def _probe(summary: str) -> dict[str, Any]:
    answers = {"200": {"description": "Yes"}, "503": {"description": "No"}}
    return {"summary": summary, "security": [], "responses": answers}
