"""What a client may send, as the OpenAPI document says it: all that a body is held against that schemas can say.

FastAPI knows the classes in which bodies are read; here is what those leave to functions of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from allo_engine.checks import PLACE, TEMPLATES
from allo_engine.config import CONFIGS
from service.api import examples

REF = "#/components/schemas/{model}"

NO_NUL = r"^[^\x00]*$"

_NULL = {"type": "null"}

_TEMPLATE = rf"^({'|'.join(TEMPLATES)})$|{re.escape(PLACE)}"

_FORMS: Mapping[str, tuple[list[str], Mapping[str, Any]]] = {
    "files.create": (
        ["purpose", "file"],
        {
            "purpose": {"const": "fine-tune"},
            "file": {"type": "string", "format": "binary", "description": "JSONL, a JSON array or Parquet."},
            "expires_after[anchor]": {"const": "created_at"},
            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
        },
    ),
    "uploads.add_part": (["data"], {"data": {"type": "string", "format": "binary", "minLength": 1}}),
}

_TOGETHER = {
    "expires_after[anchor]": ["expires_after[seconds]"],
    "expires_after[seconds]": ["expires_after[anchor]"],
}


_EXAMPLES = {
    "CreateJob": examples.JOB,
    "CreateSweep": examples.SWEEP,
    "Estimate": examples.ESTIMATE,
    "CreateChat": examples.CHAT,
    "CreateCompletion": examples.COMPLETION,
}


def describe_bodies(document: dict[str, Any]) -> None:
    """Forms, which their endpoints read as they come; settings of stages; fields that go together; examples."""
    schemas = document["components"]["schemas"]
    operations = [operation for verbs in document["paths"].values() for operation in verbs.values()]
    for operation in operations:
        if operation["operationId"] in _FORMS:
            operation["requestBody"] = {
                "required": True,
                "content": {"multipart/form-data": {"schema": _form(operation)}},
            }
    _describe_settings(schemas)
    schemas["JsonValue"] = _any_json()
    schemas["CreateUpload"]["properties"]["purpose"] = {"const": "fine-tune"}
    for name in _named([operation.get("requestBody") for operation in operations], schemas):
        complete(schemas[name])
    for name, example in _EXAMPLES.items():
        schemas[name]["examples"] = [example]


def _form(operation: Mapping[str, Any]) -> dict[str, Any]:
    required, fields = _FORMS[operation["operationId"]]
    together = {"dependentRequired": _TOGETHER} if _TOGETHER.keys() <= fields.keys() else {}
    return {
        "type": "object",
        "required": required,
        "properties": dict(fields),
        "additionalProperties": False,
        **together,
    }


def _describe_settings(schemas: dict[str, Any]) -> None:
    """What stages take is said by the engine's own classes, wherever it is given: to one stage, to all, or swept."""
    for config in CONFIGS.values():
        if "template" in config.model_fields:
            schemas[config.__name__]["properties"]["template"]["pattern"] = _TEMPLATE
    stages = {name: {"anyOf": [_ref(config.__name__), _NULL]} for name, config in CONFIGS.items()}
    shorthand = {field: {"anyOf": [*kinds, {"enum": ["auto", None]}]} for field, kinds in _fields(schemas).items()}
    shorthand["learning_rate_multiplier"] = {
        "anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}, {"enum": ["auto", None]}]
    }
    schemas["Shorthand"] = _closed(shorthand) | {"description": "Settings of every stage that has them."}
    method = schemas["MethodSettings"]["properties"]
    method["stages"]["anyOf"] = [_closed(stages), _NULL]
    for holder in (method, schemas["CreateJob"]["properties"], schemas["CreateSweep"]["properties"]):
        holder["hyperparameters"]["anyOf"] = [_ref("Shorthand"), _NULL]
    swept = schemas["CreateSweep"]["properties"]["sweep"]
    values = {
        **{
            f"{stage}.{field}": _field(config, field)
            for stage, config in CONFIGS.items()
            for field in config.model_fields
        },
        **{field: {"$ref": f"{REF.format(model='Shorthand')}/properties/{field}"} for field in shorthand},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    }
    most = swept.pop("additionalProperties")
    del swept["propertyNames"]
    swept |= _closed({name: most | {"items": value} for name, value in values.items()})


def _fields(schemas: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Of every field of any stage, what the stages that have it take: one kind of value, or several."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for config in CONFIGS.values():
        for field, schema in schemas[config.__name__]["properties"].items():
            said = repr({key: value for key, value in schema.items() if key not in ("default", "description", "title")})
            found.setdefault(field, {}).setdefault(said, _field(config, field))
    return {field: list(kinds.values()) for field, kinds in found.items()}


def _field(config: type[Any], field: str) -> dict[str, Any]:
    return {"$ref": f"{REF.format(model=config.__name__)}/properties/{field}"}


def _any_json() -> dict[str, Any]:
    own, most = _ref("JsonValue"), 2**63 - 1
    inner = [{"type": "array", "items": own}, {"type": "object", "additionalProperties": own}]
    number = {"type": "number", "minimum": -most, "maximum": most}
    return {"anyOf": [_NULL, {"type": "boolean"}, number, {"type": "string"}, *inner]}


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF.format(model=name)}


def _named(schema: Any, schemas: Mapping[str, Any], seen: set[str] | None = None) -> set[str]:
    """The names of all that a schema refers to."""
    seen = set() if seen is None else seen
    if isinstance(schema, dict):
        name = str(schema.get("$ref", "")).removeprefix(REF.format(model="")).partition("/")[0]
        if name and name not in seen:
            seen.add(name)
            _named(schemas[name], schemas, seen)
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _named(inner, schemas, seen)
    return seen


_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}


def complete(schema: Any) -> None:
    """What else holds of all that is sent: no text has a NUL, as no database could keep it; bounds are whole numbers
    where they are, as floats, which FastAPI has, are written as others than they are from 2**53 on."""
    if isinstance(schema, dict):
        if schema.get("type") == "string" and not schema.keys() & {"pattern", "enum", "const", "format"}:
            schema["pattern"] = NO_NUL
        if isinstance(schema.get("additionalProperties"), dict):
            schema.setdefault("propertyNames", {}).setdefault("pattern", NO_NUL)
        for bound in schema.keys() & _BOUNDS:
            number = schema[bound]
            schema[bound] = int(number) if isinstance(number, float) and number.is_integer() else number
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        complete(inner)
