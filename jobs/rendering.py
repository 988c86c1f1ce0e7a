"""From a request to the token ids that the engine gets: chat template, tokenizer and the card's limits, in bulk."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.cards import Limits
from jobs.generation import Generation
from jobs.schema import Problem
from jobs.tool_messages import as_plain_messages, speaks_of_tools
from jobs.tools import ToolUse

_TOOLS = re.compile(r"\btools\b")


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model sees it: the text after the template, and its token ids."""

    text: str
    token_ids: list[int]


class Renderer:
    """A model's tokenizer and chat template. Any thread may call it; calls run one after the other."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: see `jobs.tokenizers.load_tokenizer`."""
        self._tokenizer = tokenizer
        # a tokenizer of the tokenizers library refuses to be used by two threads at once
        self._lock = threading.Lock()

    def render(self, generations: Sequence[Generation], limits: Limits) -> list[Rendered | Problem]:
        """One outcome a request, in order: its tokens, or why it fails, alone."""
        with self._lock:
            return self._render(generations, self._texts(generations), limits)

    def measure(self, generations: Sequence[Generation], limits: Limits) -> list[int | Problem | None]:
        """How many tokens each prompt has, or why the request fails, as `render` would say; None for one that is too
        short to be over a limit, whatever its tokens: most are, and take no tokenizing."""
        with self._lock:
            texts = self._texts(generations)
            pairs = zip(generations, texts, strict=True)
            doubtful = [
                number for number, (one, text) in enumerate(pairs) if not self._is_short(one, text, limits)
            ]
            outcomes = self._render(
                [generations[number] for number in doubtful], [texts[number] for number in doubtful], limits
            )
        measured: list[int | Problem | None] = [None] * len(generations)
        for number, outcome in zip(doubtful, outcomes, strict=True):
            measured[number] = outcome if isinstance(outcome, Problem) else len(outcome.token_ids)
        return measured

    def _is_short(self, generation: Generation, text: str | Problem, limits: Limits) -> bool:
        at_most = getattr(self._tokenizer, "max_tokens", None)
        if at_most is None or isinstance(text, Problem) or not text:
            return False
        num_tokens = at_most(text, add_special_tokens=generation.raw)
        return (
            num_tokens is not None
            and num_tokens <= limits.max_input_length
            and num_tokens + generation.max_tokens <= limits.max_total_tokens
        )

    def _render(
        self, generations: Sequence[Generation], texts: Sequence[str | Problem], limits: Limits
    ) -> list[Rendered | Problem]:
        outcomes = self._tokenize(generations, [self._unless_endless(text, limits) for text in texts])
        return [
            check_limits(generation, outcome, limits)
            for generation, outcome in zip(generations, outcomes, strict=True)
        ]

    def _texts(self, generations: Sequence[Generation]) -> list[str | Problem]:
        texts: list[str | Problem] = [generation.prompt or "" for generation in generations]
        chats = []
        for number, generation in enumerate(generations):
            if generation.tools is not None and not generation.raw:
                texts[number] = self._apply_template_alone(_messages(generation), generation.tools)
            elif not generation.raw:
                chats.append(number)
        conversations = [self._untooled(_messages(generations[number])) for number in chats]
        try:
            rendered: Sequence[str | Problem] = self._apply_template(conversations) if chats else []
        except Exception:
            # One of them is refused; find out which, so that the others do not suffer for it.
            rendered = [self._apply_template_alone(conversation) for conversation in conversations]
        for number, text in zip(chats, rendered, strict=True):
            texts[number] = text
        return texts

    def _unless_endless(self, text: str | Problem, limits: Limits) -> str | Problem:
        """A text that is too long whatever its tokens: they would take a hundred times its own memory."""
        max_chars = getattr(self._tokenizer, "max_token_chars", None)
        if max_chars is None or isinstance(text, Problem) or len(text) <= max_chars * limits.max_input_length:
            return text
        return _too_long(f"at least {-(-len(text) // max_chars):,} prompt tokens", limits)

    @cached_property
    def _knows_tools(self) -> bool:
        """Whether the template does something with tools; of several templates one may be for them alone."""
        templates = self._tokenizer.chat_template
        sources = templates.values() if isinstance(templates, dict) else [templates or ""]
        return any(_TOOLS.search(source) for source in sources)

    def _untooled(self, conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A conversation in which no tool is offered; it may still tell of calls, which not every template knows."""
        if self._knows_tools or not any(map(speaks_of_tools, conversation)):
            return conversation
        return as_plain_messages(conversation, None)

    def _apply_template(
        self, conversations: Sequence[Sequence[dict[str, Any]]], tools: ToolUse | None = None
    ) -> list[str]:
        others: dict[str, Any] = {}
        if tools is not None and self._knows_tools:
            others = {"tools": list(tools.tools)}
        elif tools is not None:
            conversations = [as_plain_messages(one, tools) for one in conversations]
        texts: list[str] = self._tokenizer.apply_chat_template(
            list(conversations), tokenize=False, add_generation_prompt=True, **others
        )
        return texts

    def _apply_template_alone(
        self, conversation: Sequence[dict[str, Any]], tools: ToolUse | None = None
    ) -> str | Problem:
        try:
            return self._apply_template([conversation], tools)[0]
        except Exception as error:
            return Problem("invalid_messages", "messages", self._explain_refusal(error))

    def _explain_refusal(self, error: Exception) -> str:
        templates = self._tokenizer.chat_template
        if not templates:
            return "the model has no chat template; give a prompt with raw: true"
        sources = [templates] if isinstance(templates, str) else templates.values()
        # words of the template's author, unlike any others, quote no message
        is_author_s = type(error).__name__ == "TemplateError" and any(str(error) in text for text in sources)
        return (
            f"the model's chat template refuses them ({str(error) if is_author_s else type(error).__name__})"
        )

    def _tokenize(
        self, generations: Sequence[Generation], texts: Sequence[str | Problem]
    ) -> list[Rendered | Problem]:
        """Like vLLM: special tokens are added to a raw prompt; a chat template writes its own."""
        outcomes: list[Rendered | Problem] = [
            text if isinstance(text, Problem) else Rendered(text, []) for text in texts
        ]
        for is_raw in (False, True):
            numbers = [
                number
                for number, outcome in enumerate(outcomes)
                if generations[number].raw == is_raw and isinstance(outcome, Rendered)
            ]
            if not numbers:
                continue
            chosen = [str(texts[number]) for number in numbers]
            encoded = self._tokenizer(chosen, add_special_tokens=is_raw)["input_ids"]
            for number, text, token_ids in zip(numbers, chosen, encoded, strict=True):
                outcomes[number] = Rendered(text, token_ids)
        return outcomes


def _messages(generation: Generation) -> list[dict[str, Any]]:
    if generation.messages is not None:
        return generation.messages
    return [{"role": "user", "content": generation.prompt}]


def _too_long(tokens: str, limits: Limits) -> Problem:
    message = f"{tokens} are more than max_input_length ({limits.max_input_length:,})"
    return Problem("input_too_long", "", message)


def check_limits(generation: Generation, rendered: Rendered | Problem, limits: Limits) -> Rendered | Problem:
    """Hold a rendered request against the card's token limits; the numbers are in the refusal."""
    if isinstance(rendered, Problem):
        return rendered
    num_prompt_tokens = len(rendered.token_ids)
    if num_prompt_tokens == 0:
        return Problem("input_empty", "", "the prompt has no tokens")
    if num_prompt_tokens > limits.max_input_length:
        return _too_long(f"{num_prompt_tokens:,} prompt tokens", limits)
    num_total_tokens = num_prompt_tokens + generation.max_tokens
    if num_total_tokens > limits.max_total_tokens:
        return Problem(
            "max_total_tokens_exceeded",
            "",
            f"{num_prompt_tokens:,} prompt tokens + max_tokens {generation.max_tokens:,} = {num_total_tokens:,}"
            f" are more than max_total_tokens ({limits.max_total_tokens:,})",
        )
    return rendered
