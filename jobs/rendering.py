"""From a request to the token ids that the engine gets: chat template, tokenizer and the card's limits, in bulk."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.cards import Limits
from jobs.generation import Generation
from jobs.schema import Problem


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model sees it: the text after the template, and its token ids."""

    text: str
    token_ids: list[int]


class Renderer:
    """A model's tokenizer and chat template. Any thread may call it; calls run one after the other."""

    def __init__(self, weights: str) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(weights)
        # a tokenizer of the tokenizers library refuses to be used by two threads at once
        self._lock = threading.Lock()

    def render(self, generations: Sequence[Generation], limits: Limits) -> list[Rendered | Problem]:
        """One outcome a request, in order: its tokens, or why it fails, alone."""
        with self._lock:
            texts = self._texts(generations)
            outcomes = self._tokenize(generations, texts)
        return [
            check_limits(generation, outcome, limits)
            for generation, outcome in zip(generations, outcomes, strict=True)
        ]

    def _texts(self, generations: Sequence[Generation]) -> list[str | Problem]:
        texts: list[str | Problem] = [generation.prompt or "" for generation in generations]
        chats = [number for number, generation in enumerate(generations) if not generation.raw]
        conversations = [_messages(generations[number]) for number in chats]
        try:
            rendered: Sequence[str | Problem] = self._apply_template(conversations) if chats else []
        except Exception:
            # One of them is refused; find out which, so that the others do not suffer for it.
            rendered = [self._apply_template_alone(conversation) for conversation in conversations]
        for number, text in zip(chats, rendered, strict=True):
            texts[number] = text
        return texts

    def _apply_template(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
        texts: list[str] = self._tokenizer.apply_chat_template(
            list(conversations), tokenize=False, add_generation_prompt=True
        )
        return texts

    def _apply_template_alone(self, conversation: Sequence[dict[str, Any]]) -> str | Problem:
        try:
            return self._apply_template([conversation])[0]
        except Exception as error:
            # the exception's text may quote the messages
            return Problem(
                "invalid_request",
                "messages",
                f"the model's chat template refuses them ({type(error).__name__})",
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


def check_limits(generation: Generation, rendered: Rendered | Problem, limits: Limits) -> Rendered | Problem:
    """Hold a rendered request against the card's token limits; the numbers are in the refusal."""
    if isinstance(rendered, Problem):
        return rendered
    num_prompt_tokens = len(rendered.token_ids)
    if num_prompt_tokens == 0:
        return Problem("invalid_request", "prompt", "the prompt has no tokens")
    if num_prompt_tokens > limits.max_input_length:
        return Problem(
            "input_too_long",
            "",
            f"{num_prompt_tokens:,} prompt tokens are more than max_input_length ({limits.max_input_length:,})",
        )
    num_total_tokens = num_prompt_tokens + generation.max_tokens
    if num_total_tokens > limits.max_total_tokens:
        return Problem(
            "max_total_tokens_exceeded",
            "",
            f"{num_prompt_tokens:,} prompt tokens + max_tokens {generation.max_tokens:,} = {num_total_tokens:,}"
            f" are more than max_total_tokens ({limits.max_total_tokens:,})",
        )
    return rendered
