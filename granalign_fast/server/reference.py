"""The page `/docs`: the routes as their OpenAPI describes them, without scripts or other hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 1px solid; padding-top: 1rem; margin-top: 2rem; font-size: 1.1rem; }
code, pre { font: 0.9rem/1.4 ui-monospace, monospace; }
pre { overflow: auto; padding: 0.75rem; border: 1px solid; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


@router.get("/docs")
def show_reference(request: Request) -> HTMLResponse:
    """Return the page."""
    page = "".join(_page(request.app.openapi()))
    return HTMLResponse(page, headers={"content-security-policy": _POLICY})


def _page(openapi: Mapping[str, Any]) -> Iterator[str]:
    title = escape(openapi["info"]["title"])
    yield (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}: HTTP API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{title}: HTTP API</h1><p>{escape(openapi['info']['description'])}</p>"
        f'<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p><ul>'
    )
    routes = [
        (method.upper(), path, route)
        for path, methods in openapi["paths"].items()
        for method, route in methods.items()
    ]
    for method, path, route in routes:
        yield (
            f'<li><a href="#{_anchor(method, path)}"><code>{method} {escape(path)}</code></a> '
            f"{escape(route.get('summary', ''))}</li>"
        )
    yield "</ul>"
    for method, path, route in routes:
        yield f'<h2 id="{_anchor(method, path)}"><code>{method} {escape(path)}</code></h2>'
        yield from _route(route, openapi)
    yield "</html>"


def _route(route: Mapping[str, Any], openapi: Mapping[str, Any]) -> Iterator[str]:
    """Yield the description, the parameters, the body and the answers of a route."""
    for part in route.get("description", "").split("\n\n"):
        yield f"<p>{escape(part)}</p>"
    if parameters := route.get("parameters"):
        rows = (
            (one["name"], one.get("schema", {}), one.get("description", one["in"]))
            for one in parameters
        )
        yield from _table("Parameters", rows, openapi)
    for kind, media in route.get("requestBody", {}).get("content", {}).items():
        yield from _body(f"Body: {kind}", media, openapi)
    for status, answer in route.get("responses", {}).items():
        content = {k: v for k, v in answer.get("content", {}).items() if "problem" not in k}
        if status.startswith("2") and content:
            for kind, media in content.items():
                yield from _body(f"Answer {status}: {kind}", media, openapi)
    problems = [status for status in route.get("responses", {}) if not status.startswith("2")]
    if problems:
        yield f"<p>Problems: {escape(', '.join(problems))}</p>"


def _body(title: str, media: Mapping[str, Any], openapi: Mapping[str, Any]) -> Iterator[str]:
    schema = _resolved(media.get("schema", {}), openapi)
    properties = schema.get("properties")
    if properties is None:
        yield f"<p>{escape(title)}</p>"
    else:
        rows = (
            (name, one, _resolved(one, openapi).get("description", ""))
            for name, one in properties.items()
        )
        yield from _table(title, rows, openapi)
    examples = [media["example"]] if "example" in media else schema.get("examples", [])
    for example in examples:
        yield f"<pre>{escape(json.dumps(example, indent=2))}</pre>"


def _table(
    title: str, rows: Iterator[tuple[str, Mapping[str, Any], str]], openapi: Mapping[str, Any]
) -> Iterator[str]:
    yield f"<table><caption>{escape(title)}</caption><tr><th>name<th>type<th>meaning</tr>"
    for name, schema, meaning in rows:
        default = f", default {json.dumps(schema['default'])}" if "default" in schema else ""
        kind = escape(_kind(schema, openapi) + default)
        yield f"<tr><td><code>{escape(name)}</code><td>{kind}<td>{escape(meaning)}</tr>"
    yield "</table>"


def _kind(schema: Mapping[str, Any], openapi: Mapping[str, Any], depth: int = 0) -> str:
    """Return the type of a value in words, with the keys of objects inside it."""
    schema = _resolved(schema, openapi)
    if options := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(dict.fromkeys(_kind(one, openapi, depth) for one in options))
    if "const" in schema or "enum" in schema:
        return " or ".join(json.dumps(one) for one in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "value"))
    if kind == "array":
        return f"array of {_kind(schema.get('items', {}), openapi, depth)}"
    if kind == "object" and "properties" in schema and depth < 2:
        keys = ", ".join(
            f"{name}: {_kind(one, openapi, depth + 1)}"
            for name, one in schema["properties"].items()
        )
        return f"object ({keys})"
    return kind


def _resolved(schema: Mapping[str, Any], openapi: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema, or the component that it refers to."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        found: Mapping[str, Any] = openapi["components"]["schemas"].get(name, {})
        return found
    return schema


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}{path}".replace("/", "-").replace("{", "").replace("}", "")).lower()
