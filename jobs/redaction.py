"""What is shown of settings and arguments to people and in reports: without passwords and tokens."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(r"(token|key|secret|password|credentials)$", re.IGNORECASE)
# up to the last @, since a password may hold one that should have been written as %40
_USER_INFO = re.compile(r"(?<=://)([^:/@]*):.*@")
_QUERY = re.compile(r"([?&;][^=&;]*(?:token|key|secret|password)=)[^&;]*", re.IGNORECASE)


def hide_password(url: str) -> str:
    """A URL without its password, wherever it stands in it; other text as it is."""
    return _QUERY.sub(rf"\1{HIDDEN}", _USER_INFO.sub(rf"\1:{HIDDEN}@", url))


def show_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON takes them; what may be a secret is hidden."""
    return {name: HIDDEN if _SECRET_NAME.search(name) else _plain(value) for name, value in arguments.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return show_arguments(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return hide_password(str(value))
