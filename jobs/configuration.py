"""What `promptmill config` shows: each setting's value, and where it comes from."""

import json
from dataclasses import dataclass
from typing import Any

from jobs.redaction import hide_password, show_arguments
from jobs.settings import Settings, load


@dataclass(frozen=True)
class Shown:
    """One setting. `source` is environment, file or default; `where` the variable, or the file and line."""

    name: str
    value: Any
    source: str
    where: str | None


def configuration() -> list[Shown]:
    """Every setting as it is in force here, secrets hidden. SettingsError where one is wrong."""
    loaded = load()
    shown = []
    for name in Settings.model_fields:
        layer = loaded.said_by.get(name)
        value = _value(loaded.settings, name)
        if layer is None:
            shown.append(Shown(name, value, "default", None))
        else:
            shown.append(Shown(name, value, layer.source, layer.places[name]))
    return shown


def as_table(shown: list[Shown]) -> str:
    rows = [(one.name, _text(one.value), one.where or one.source) for one in shown]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {value:{widths[1]}}  {where}" for name, value, where in rows)


def _text(value: Any) -> str:
    if value in (None, "", {}):
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _value(settings: Settings, name: str) -> Any:
    if name == "database_url":
        return hide_password(settings.resolved_database_url)
    if name == "broker_url":
        return hide_password(settings.resolved_broker_url)
    return show_arguments({name: getattr(settings, name)})[name]
