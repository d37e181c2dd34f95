"""`docs/api.md` from the service's own OpenAPI document: `python docs/generate_api.py > docs/api.md`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.context import Context
from service.serving.process import ServingProcess
from service.settings import Settings

PREFIX = "/v1"
_HEAD = """\
# HTTP API

All routes are under `/v1`; the running service describes them at `/v1/openapi.json`. Send
`Authorization: Bearer <API key>`. Every error is `application/problem+json` (RFC 9457) with the fields of
[Problem](#problem); its `detail` says what was expected, what came and what to do. Times are RFC 3339 in
UTC. Every answer has all its fields; unknown values are null.

A call that could be read in two ways is refused with 422, and nothing is stored: a name twice in an object of the body,
at any depth; a header in two lines (`Authorization`, `Content-Type`, `Content-Length`, `Content-Encoding`,
`Idempotency-Key`), or an `Idempotency-Key` with a comma, which is how proxies join two; a query parameter twice, unless
it is a list, or one that the route does not have; a body that is not UTF-8, begins with a byte order mark or has a
`Content-Encoding`; a field that the route does not have. User ids are strings as in the data: `1` is not `"1"`, and
another spelling of an id (Unicode form, blanks, invisible characters) is refused. Input that is not HTTP, such as two
different lengths of one body, is answered by the server itself, with 400 and a line of text.

The [glossary](glossary.md) defines the terms.
"""

Json = Mapping[str, Any]


def openapi_document() -> dict[str, Any]:
    """The document that a serving process gives out, from a home that is made for it and thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        context = Context.open(Settings(home=Path(folder)))
        document: dict[str, Any] = ServingProcess.of(context).app.openapi()
        context.engine.dispose()
    return document


def api_reference(document: Json) -> str:
    """Markdown of an OpenAPI 3.1 document: routes by tag, then the shapes they take and give."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            by_tag.setdefault(tag, []).append("\n".join(_operation(method, path, operation)))
    parts = [_HEAD]
    for tag, operations in by_tag.items():
        parts += [f"## {tag.capitalize()}\n", *operations]
    parts.append("## Shapes\n")
    schemas = document["components"]["schemas"]
    parts += ["\n".join(_schema(name, schemas[name])) for name in sorted(schemas) if _is_ours(name)]
    return "\n".join(parts).rstrip() + "\n"


def _is_ours(name: str) -> bool:
    return name not in {"HTTPValidationError", "ValidationError"}


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f"### `{method.upper()} {PREFIX}{path}`\n"
    yield operation.get("description", operation.get("summary", "")) + "\n"
    parameters = [p for p in operation.get("parameters", []) if p["name"].lower() != "authorization"]
    if parameters:
        yield "| parameter | in | type | meaning |\n|---|---|---|---|"
        for p in parameters:
            must = ", required" if p.get("required") and p["in"] != "path" else ""
            schema = p["schema"]
            meaning = p.get("description") or schema.get("description", "")
            yield f"| `{p['name']}` | {p['in']}{must} | {_type(schema)} | {_cell(meaning)} |"
        yield ""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"* body, `{media_type}`: {_type(content['schema'])}"
    for status, answer in operation["responses"].items():
        kinds = [f"`{kind}` {_type(content.get('schema', {}))}" for kind, content in answer.get("content", {}).items()]
        if int(status) < 400:
            yield f"* **{status}** {answer['description']}: {' or '.join(kinds) or 'no body'}"
    errors = [status for status in operation["responses"] if int(status) >= 400]
    if errors:
        yield f"* errors: {', '.join(sorted(errors))}"
    yield ""


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}\n"
    if "description" in schema:
        yield schema["description"] + "\n"
    required = schema.get("required", [])
    if not schema.get("properties"):
        yield f"{_type(schema)}\n"
        return
    yield "| field | type | meaning |\n|---|---|---|"
    for field, shape in schema["properties"].items():
        default = "" if field in required or "default" not in shape else f" Default: `{json.dumps(shape['default'])}`."
        yield f"| `{field}` | {_type(shape)} | {_cell(shape.get('description', '') + default)} |"
    yield ""


def _type(schema: Json) -> str:
    """A schema in a few words."""
    kind = str(schema.get("format", schema.get("type", "any")))
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        kind = f"[{name}](#{name.lower()})"
    elif "anyOf" in schema:
        kind = " or ".join(_type(option) for option in schema["anyOf"])
    elif "enum" in schema:
        kind = ", ".join(f"`{value}`" for value in schema["enum"])
    elif "const" in schema:
        kind = f"`{schema['const']}`"
    elif kind == "array":
        kind = f"list of {_type(schema.get('items', {}))}"
    elif kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        kind = f"map of {_type(schema['additionalProperties'])}"
    return "bytes" if kind == "binary" else kind


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(api_reference(openapi_document()), end="")  # noqa: T201
