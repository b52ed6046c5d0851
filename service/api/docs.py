"""/docs: the documentation, served by the service itself, so that it is there without any network.

The reference is the OpenAPI document, written out, and the settings are the fields of the classes that read them. The
other pages are the Markdown files that stand beside the code that they explain, anywhere in our packages:
`service/operations.md` is /docs/operations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from allo_engine.config import CONFIGS, HARNESS_TASKS, TEACHER_KEY
from service.api.bodies import REF
from service.jobs.errors import NotFound
from service.settings import Settings

router = APIRouter(prefix="/docs", include_in_schema=False)
document = APIRouter(include_in_schema=False)

_PACKAGES = ("service", "worker", "allo_engine")
_ROOT = Path(__file__).parents[2]
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = """
:root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto;
padding: 0 1rem } code, pre { font: 14px/1.4 ui-monospace, monospace } pre { overflow-x: auto; padding: .8rem; border:
1px solid #8885; border-radius: .3rem } table { border-collapse: collapse; display: block; overflow-x: auto } td, th {
border: 1px solid #8885; padding: .2rem .6rem; text-align: left; vertical-align: top } summary { cursor: pointer }
details { margin: .4rem 0; padding-left: .5rem; border-left: 2px solid #8885 } nav { margin-bottom: 2rem }
"""

_OF_THE_SERVICE = f"""<h1>Settings</h1><h2>Of the service</h2><p>Environment variables, all optional. One that is
misspelt is refused at the start. Stages read two more: {TEACHER_KEY}, the key of teachers and judges, and
{HARNESS_TASKS}, the folder of the tasks of lm-evaluation-harness that jobs may name.</p>"""
_OF_STAGES = """<h2>Of each stage</h2><p>Given in <code>method.&lt;type&gt;.stages.&lt;stage&gt;</code>, or by
<code>allo submit --set STAGE.FIELD=VALUE</code>; without the stage's name, or in <code>hyperparameters</code>, for
every stage that has the field.</p>"""


@router.get("")
def reference(request: Request) -> HTMLResponse:
    """Every route, with what it takes and answers."""
    return _page("API", _reference_of(request.app))


@router.get("/settings")
def settings() -> HTMLResponse:
    """Every setting of the service and of every stage."""
    return _page("Settings", _settings())


@document.get("/v1/openapi.json")
async def openapi(request: Request) -> Response:
    """The document itself."""
    return Response(_document_of(request.app), media_type="application/json")


# Whoever has no key may ask for these, too: they are written once.


@lru_cache(maxsize=1)
def _reference_of(app: FastAPI) -> str:
    return _reference(app.openapi())


@lru_cache(maxsize=1)
def _document_of(app: FastAPI) -> bytes:
    return json.dumps(app.openapi(), ensure_ascii=False).encode()


@router.get("/{name}")
def page(name: str) -> HTMLResponse:
    """One page. Raises NotFound."""
    if name not in pages():
        raise NotFound(f"There is no page {name:.60}. There are: {', '.join(('settings', *pages()))}.")
    return _page(name.capitalize(), _html(pages()[name]))


@cache
def pages() -> Mapping[str, Path]:
    """The Markdown files of our packages by their names."""
    found = (path for package in _PACKAGES for path in (_ROOT / package).rglob("*.md"))
    return {path.stem: path for path in sorted(found, key=lambda path: path.stem)}


@cache
def _html(path: Path) -> str:
    from markdown_it import MarkdownIt  # here, for no other route needs it

    return str(MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text()))


def _page(title: str, body: str) -> HTMLResponse:
    links = "".join(f' · <a href="/docs/{name}">{name}</a>' for name in ("settings", *pages()))
    nav = f'<nav><a href="/docs">API</a>{links} · <a href="/v1/openapi.json">openapi.json</a></nav>'
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>ALLO · {title}</title>'
    text = f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{nav}{body}</body></html>"
    return HTMLResponse(text, headers={"content-security-policy": _POLICY, "referrer-policy": "no-referrer"})


@cache
def _settings() -> str:
    variables = Settings.model_json_schema()["properties"].items()
    parts = [_OF_THE_SERVICE, _fields({f"ALLO_{name.upper()}": field for name, field in variables}), _OF_STAGES]
    objects: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        objects[name] = config.model_json_schema()
    for schema in list(objects.values()):
        objects |= {name: one for name, one in schema.pop("$defs", {}).items() if "properties" in one}
    for name, schema in objects.items():
        told = f"<summary><code>{name}</code> — {escape(schema['description'])}</summary>"
        parts.append(f'<details id="{name}">{told}{_fields(schema["properties"])}</details>')
    return "".join(parts)


def _fields(properties: Mapping[str, Any]) -> str:
    rows = []
    for name, field in properties.items():
        default = escape(json.dumps(field["default"])) if "default" in field else ""
        kind = _type({key: value for key, value in field.items() if key != "default"})
        rows.append((f"<code>{escape(name)}</code>", kind, default, escape(field.get("description", ""))))
    return _table(("Setting", "type", "default", ""), rows)


def _reference(document: Mapping[str, Any]) -> str:
    parts = [f"<h1>API</h1><p>{escape(document['info']['description'])}</p>"]
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2><p>{escape(tag['description'])}</p>")
        parts += _routes(document, tag["name"])
    parts.append("<h2>Objects</h2>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        summary = f"<summary><code>{escape(name)}</code></summary>"
        parts.append(f'<details id="{escape(name)}">{summary}{_object(schema)}</details>')
    return "".join(parts)


def _routes(document: Mapping[str, Any], tag: str) -> Iterator[str]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            if tag in operation["tags"]:
                line = f"<code>{verb.upper()} {escape(path)}</code> — {escape(operation['summary'])}"
                yield f"<details><summary>{line}</summary>{_operation(operation)}</details>"


def _operation(operation: Mapping[str, Any]) -> str:
    told = f"<p>{escape(operation['description'])}</p>"
    fields = [
        (escape(one["name"]), one["in"], _type(one["schema"]), escape(one.get("description", "")))
        for one in operation.get("parameters", ())
    ]
    told += _table(("Parameter", "in", "type", ""), fields) if fields else ""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        told += f"<p>Body, {escape(kind)}: {_type(content['schema'])}</p>"
    answers = [
        (status, _answer(answer), escape(answer["description"]))
        for status, answer in sorted(operation["responses"].items())
    ]
    return told + _table(("Status", "body", ""), answers)


def _answer(answer: Mapping[str, Any]) -> str:
    contents = answer.get("content", {}).items()
    return ", ".join(f"{escape(kind)} {_type(content.get('schema', {}))}" for kind, content in contents)


def _object(schema: Mapping[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = [
        (escape(name), _type(field), "" if name in needed else "optional", escape(field.get("description", "")))
        for name, field in schema.get("properties", {}).items()
    ]
    examples = "".join(f"<pre>{escape(json.dumps(one, indent=2))}</pre>" for one in schema.get("examples", ()))
    return f"<p>{escape(schema.get('description', ''))}</p>{_table(('Field', 'type', '', ''), rows)}{examples}"


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words; objects are links."""
    if "$ref" in schema:
        name, _, field = escape(schema["$ref"].removeprefix(REF.format(model=""))).partition("/properties/")
        return f'<a href="#{name}">{name}{"." if field else ""}{field}</a>'
    if "const" in schema or "enum" in schema:
        return escape(", ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")])))
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if isinstance(schema.get("type"), list):
        return escape(" or ".join(schema["type"]))
    if "has_more" in schema.get("properties", {}):
        return f"page of {_type(schema['properties']['data']['items'])}"
    default = f", default {json.dumps(schema['default'])}" if "default" in schema else ""
    return escape(f"{schema.get('format') or schema.get('type', 'anything')}{default}")


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Cells are HTML."""
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
