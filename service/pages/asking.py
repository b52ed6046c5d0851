"""A job as a form asks for it: the request that the API would get, and where in the form an error belongs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allo_engine.pipeline import METHODS, Method
from service.jobs.access.trackers import TITLES
from service.pages.fields import LEFT_OUT, OPTIONAL, settings_of

FILES = ("training_file", "validation_file", "corrections_file", "retention_file")
PLAIN = ("model", *FILES, "masks", "suffix", "priority")
NUMBERS = ("seed", "max_seconds")

TRACKERS: Mapping[str, tuple[str, ...]] = {
    "mlflow": ("experiment", "run_name"),
    "wandb": ("project", "name", "entity"),
    "trackio": ("project", "name"),
}
"""The fields of each; its first says that the job is told there."""


@dataclass(frozen=True)
class Asked:
    """What was put in, by the names of fields, with empty ones left out."""

    typed: Mapping[str, str]

    @property
    def method(self) -> Method:
        return next((method for method in METHODS if method == self.typed.get("method")), "allo")

    def body(self) -> dict[str, Any]:
        """The request, without whatever is as it would be anyway."""
        body: dict[str, Any] = {name: self.typed[name] for name in PLAIN if name in self.typed}
        body["method"] = {"type": self.method}
        if settings := self._settings():
            body["method"][self.method] = settings
        body |= {name: _number(self.typed[name]) for name in NUMBERS if name in self.typed}
        if "metadata" in self.typed:
            body["metadata"] = _pairs(self.typed["metadata"])
        if told := [one for kind in TITLES if (one := self._integration(kind))]:
            body["integrations"] = told
        return body

    def _settings(self) -> dict[str, Any]:
        hyperparameters: dict[str, Any] = {}
        stages: dict[str, Any] = {name: {} for name in OPTIONAL.get(self.method, ()) if f"ask.{name}" in self.typed}
        for name, setting in settings_of(self.method).items():
            if name in self.typed:
                group, _, field = name.partition(".")
                value = setting.value(self.typed[name])
                if group == "hyperparameters":
                    hyperparameters[field] = value
                else:
                    stage, _, field = field.partition(".")
                    stages.setdefault(stage, {})[field] = value
        stages |= {name: None for name in LEFT_OUT[self.method] if f"without.{name}" in self.typed}
        found = {"hyperparameters": hyperparameters, "stages": stages}
        return {name: value for name, value in found.items() if value}

    def _integration(self, kind: str) -> dict[str, Any] | None:
        given = {field: self.typed.get(f"{kind}.{field}") for field in TRACKERS[kind]}
        if not given[TRACKERS[kind][0]]:
            return None
        return {"type": kind, kind: {field: value for field, value in given.items() if value}}

    def field(self, param: str | None) -> str:
        """The field that an error about `param` belongs to; empty where it belongs to the whole."""
        if param is None:
            return ""
        name = re.sub(rf"^method\.{self.method}\.", "", param)
        told = re.match(r"integrations\.(\d+)\.?(.*)", name)
        if told:
            kinds = [one["type"] for one in self.body().get("integrations", ())]
            kind = kinds[int(told[1])] if int(told[1]) < len(kinds) else ""
            name = told[2] if told[2].startswith(f"{kind}.") else f"{kind}.{TRACKERS.get(kind, ('',))[0]}"
        name = re.sub(r"^metadata\..*", "metadata", name)
        known = {*PLAIN, *NUMBERS, "method", "metadata", *settings_of(self.method)}
        known |= {f"{kind}.{field}" for kind, fields in TRACKERS.items() for field in fields}
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name


def like(job: Mapping[str, Any]) -> dict[str, str]:
    """The form's fields of a job that is there: whatever of it is not as it would be anyway."""
    method: Method = job["method"]["type"]
    typed = {name: str(job[name]) for name in PLAIN if job.get(name)} | {"method": method, "seed": str(job["seed"])}
    typed |= {"max_seconds": str(job["max_seconds"])} if job.get("max_seconds") else {}
    typed.pop("suffix", None)
    if typed.get("priority") != "low":
        typed.pop("priority", None)
    stages = job["method"][method]["stages"]
    for name, setting in settings_of(method).items():
        group, stage, field = (*name.split("."), "")[:3]
        values = stages.get(stage)
        if group == "stages" and values and field in values and field != "seed":
            value = setting.text(values[field])
            if value != setting.default:
                typed[name] = value
    asked = {f"ask.{name}": "on" for name in OPTIONAL.get(method, ()) if stages.get(name) is not None}
    left = {f"without.{name}": "on" for name in LEFT_OUT[method] if name in stages and stages[name] is None}
    return typed | asked | left


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() and len(text) < 12 else text


def _pairs(text: str) -> dict[str, str]:
    """`name=value` a line."""
    lines = [line.partition("=") for line in text.splitlines() if line.strip()]
    return {name.strip(): value.strip() for name, _, value in lines}
