"""A user's Jinja template, in the sandbox: it sees a row, and nothing else."""

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from db.errors import SettingsError
from jobs.schema import Problem


class Template:
    """`names` are the columns that it asks for. SettingsError for text that is no template."""

    def __init__(self, text: str) -> None:
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        try:
            self.names = frozenset(meta.find_undeclared_variables(environment.parse(text)))
            self._template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise SettingsError(f"--template, line {error.lineno}: {error.message}") from error
        except TemplateError as error:
            raise SettingsError(f"--template: {error.message}") from error

    def render(self, row: Mapping[str, Any]) -> str | Problem:
        """The prompt, or why this row gives none; no value of the row is quoted."""
        try:
            return self._template.render(row)
        except UndefinedError:
            missing = sorted(name for name in self.names if name not in row)
            which = f"{missing[0]}, which is missing or empty" if missing else "what this row does not have"
            message = f"the template asks for {which}"
        except Exception as error:
            message = f"the template fails on this row: {type(error).__name__}"
        return Problem("invalid_request", "", message)
