"""OpenAI's chat messages as a chat template takes them: text alone, and the roles that templates know."""

from typing import Any

# What newer files call the system's role; templates do not.
_ROLES = {"developer": "system"}


def plain_message(message: dict[str, Any]) -> None:
    """Change a message: null fields go, the role is the template's, and there is always a content."""
    for name in [name for name, value in message.items() if value is None]:
        del message[name]
    role = message.get("role")
    if isinstance(role, str):
        message["role"] = _ROLES.get(role, role)
    message.setdefault("content", "")


def as_text(content: object) -> str | tuple[str, str]:
    """The text of a content, whose parts are joined; or which part cannot be one, like `[1].type`, and why."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "", "content is text, or a list of parts with text"
    texts = []
    for at, part in enumerate(content):
        if not isinstance(part, dict):
            return f"[{at}]", "a part of a content is an object"
        if part.get("type") not in ("text", "input_text", "output_text"):
            return f"[{at}].type", "only parts of type text are supported"
        if not isinstance(part.get("text"), str):
            return f"[{at}].text", "a part of type text has a text"
        texts.append(part["text"])
    return "\n".join(texts)
