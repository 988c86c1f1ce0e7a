"""What the command line says about how its files are to be read."""

from dataclasses import dataclass
from pathlib import Path

from db.errors import SettingsError, why
from db.states import InputFormat

_MAX_TEMPLATE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Reading:
    """`input_format` None: each file's own beginning says it. `template` is Jinja text. `is_model_given`: --model was
    given, so that other models' names in the files are known not to count."""

    input_format: InputFormat | None = None
    template: str | None = None
    prompt_column: str | None = None
    messages_column: str | None = None
    is_model_given: bool = False

    @property
    def is_mapped(self) -> bool:
        """Whether requests are made from columns (of JSON: fields), and are not there as they are."""
        return bool(self.mapping)

    @property
    def mapping(self) -> list[str]:
        """What requests are made by, as lines that the input's hash covers."""
        named = {
            "template": self.template,
            "prompt-column": self.prompt_column,
            "messages-column": self.messages_column,
        }
        return [f"{name} {value}" for name, value in named.items() if value is not None]


def reading_of(
    input_format: str | None = None,
    template: str | None = None,
    prompt_column: str | None = None,
    messages_column: str | None = None,
    *,
    is_model_given: bool = False,
) -> Reading:
    """The options as they were given, a template as a file or as text. SettingsError for what contradicts itself."""
    if sum(option is not None for option in (template, prompt_column, messages_column)) > 1:
        raise SettingsError("--template, --prompt-column and --messages-column exclude each other; give one")
    chosen = InputFormat(input_format) if input_format else None
    text = None if template is None else _template_text(template)
    reading = Reading(chosen, text, prompt_column, messages_column, is_model_given)
    if chosen is InputFormat.OPENAI and reading.is_mapped:
        raise SettingsError("OpenAI's lines are requests already: no template and no column makes them")
    return reading


def _template_text(template: str) -> str:
    if "{{" in template or "{%" in template:
        return template
    path = Path(template)
    try:
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise SettingsError(f"{path} is larger than a template may be ({_MAX_TEMPLATE_BYTES:,} bytes)")
        return path.read_bytes().decode()
    except OSError as error:
        step = "give a file, or text with {{ column }} in it"
        raise SettingsError(f"cannot read the template {path}: {why(error, step)}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"the template {path} is not UTF-8 text; save it as UTF-8") from error
