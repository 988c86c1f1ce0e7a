"""A model's chat template, rendered as the transformers library does it, without the seconds that its import takes."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# A template may be one, or several by name; of those the first is meant, with tools the second if there is one.
_DEFAULT = "default"
_WITH_TOOLS = "tool_use"


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what the model has said, which only training asks for."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  templates call it so
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002  the same
) -> str:
    """Unlike jinja2's own filter it escapes nothing: the text is for a model and not for a page."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005  a template means the clock of the place


class ChatTemplate:
    """A template compiled once; `special_tokens` are what it may call bos_token, eos_token and so on."""

    def __init__(self, source: str | Mapping[str, str], special_tokens: Mapping[str, Any]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        sources = {_DEFAULT: source} if isinstance(source, str) else source
        self._templates = {
            name: environment.from_string(sources[name])
            for name in (_DEFAULT, _WITH_TOOLS)
            if name in sources
        }
        for template in self._templates.values():
            # a plain dict in the place of a chain of them, which each rendering would walk through
            template.globals = dict(template.globals)
        self._special_tokens = dict(special_tokens)

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, **others: Any
    ) -> str:
        """The text of one conversation; whatever the template raises."""
        values = {"documents": None, **self._special_tokens, **others}
        return self._template(tools).render(messages=messages, tools=tools, **values)

    def _template(self, tools: Sequence[Any] | None) -> Template:
        if tools is not None and _WITH_TOOLS in self._templates:
            return self._templates[_WITH_TOOLS]
        return self._templates[_DEFAULT]
