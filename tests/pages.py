"""Pages of documentation as sessions: the commands in their console blocks, and what is shown of them.

A block is ```console. A line that begins with "$ " is a command, which goes on after a backslash and through a here
document; what stands beneath is its output. `# exit code 3` behind a command is the code that it ends with, else 0.
A line `...` stands for any lines. An HTML comment above a block that says what differs, as "the answers differ", leaves
its output unread.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_FENCE = re.compile(r"^```(\S*)")
_HERE_DOCUMENT = re.compile(r"<<\s*'?(\w+)'?")
_EXIT_CODE = re.compile(r"# exit code (\d+)")
ID = re.compile(r"\bjob_[0-9a-z]{10}\b")
_DIFFERS = re.compile(r"<!-- .*\bdiffers?\b.* -->")
ANY_LINES = "..."


@dataclass(frozen=True)
class Step:
    """One command with what the page shows of it; `line_number` counts from 1."""

    line_number: int
    command: str
    shown: tuple[str, ...]
    is_read: bool

    @property
    def exit_code(self) -> int:
        found = _EXIT_CODE.search(self.command)
        return int(found[1]) if found else 0

    @property
    def is_worker(self) -> bool:
        return re.match(r"(\w+=\S+ )*promptmill worker\b", self.command) is not None


def blocks(text: str) -> Iterator[tuple[int, str, str, list[str]]]:
    """Each fenced block: the number of its first line, its kind, the line above it, its lines."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        if opened := _FENCE.match(lines[number]):
            end = lines.index("```", number + 1)
            above = next((line for line in reversed(lines[:number]) if line), "")
            yield number + 2, opened[1], above, lines[number + 1 : end]
            number = end
        number += 1


def steps(text: str) -> list[Step]:
    """Every command of a page, in its order."""
    return [
        step
        for first, kind, above, lines in blocks(text)
        if kind == "console"
        for step in _steps_of_block(first, lines, is_read=not _DIFFERS.fullmatch(above))
    ]


def _steps_of_block(first: int, lines: Sequence[str], *, is_read: bool) -> Iterator[Step]:
    start = 0
    while start < len(lines):
        last = _last_line(lines, start)
        end = next((at for at in range(last + 1, len(lines)) if lines[at].startswith("$ ")), len(lines))
        command = "\n".join(lines[start : last + 1])[2:]
        yield Step(first + start, command, tuple(lines[last + 1 : end]), is_read)
        start = end


def _last_line(lines: Sequence[str], at: int) -> int:
    """Of the command that begins at `at`."""
    if document := _HERE_DOCUMENT.search(lines[at]):
        return lines.index(document[1], at)
    while lines[at].endswith("\\"):
        at += 1
    return at


# What is another one in each run, or with another engine, and what stands in its place; in this order.
_MASKS = [
    (r"\s+", " "),
    (r"\bjob_[0-9a-z]{10}\b", "JOB"),
    (r"\b(worker|sched\w*)_[0-9a-z]{8,12}\b", "WORKER"),
    (r"\b[0-9a-f]{12,64}\b", "HASH"),
    (r"(?<![\w.~])~?(/[\w.@-]+){2,}", "PATH"),
    (r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?( UTC|Z)?)?", "DATE"),
    (r"\b(\d+h \d\d?m|\d+m \d\d?s|[\d.]+ ?m?s)\b", "TIME"),
    (r"\d[\d,.]*k?( [a-z]+)? (tokens|requests)/s", "RATE"),
    (r"[\d,]+ (prompt|completion)\b", r"N \1"),
    (r"\b(prompt_tokens|completion_tokens|total_tokens|elapsed_s)\b(\W+)[\d.]+", r"\1\2N"),
    (r'"response": ?"([^"\\]|\\.)*"', '"response":TEXT'),
    (r'"finish_reason": ?"\w+"', '"finish_reason":WORD'),
]
# What only a program sees, where a reader has a bar: how many lines there are depends on how long it takes.
_PROGRESS = re.compile(r"(loading the engine|waiting for the database|queued|in_progress|completed)(  .*)?")
_LAST_LINE = "promptmill: job="
# What is said or not, as a worker beside it is ready or not yet.
_MAY_BE = re.compile("no broker answers, so the job waits; .*")


def masked(line: str) -> str:
    for pattern, instead in _MASKS:
        line = re.sub(pattern, instead, line)
    return line.strip()


def as_in_a_terminal(output: Sequence[str]) -> list[str]:
    return [line for line in output if not _PROGRESS.fullmatch(line) and not line.startswith(_LAST_LINE)]


def first_difference(shown: Sequence[str], actual: Sequence[str]) -> str | None:
    """None if `actual` is what is `shown`, but for what differs from run to run; else what is missing or too much."""
    is_for_programs = any(line.startswith(_LAST_LINE) for line in shown)
    wanted, left = (
        [
            line
            for line in lines
            if line
            and not _PROGRESS.fullmatch(line)
            and not _MAY_BE.fullmatch(line)
            and (is_for_programs or not line.startswith(_LAST_LINE))
        ]
        for lines in (shown, actual)
    )
    may_skip = False
    for line in wanted:
        if line == ANY_LINES:
            may_skip = True
            continue
        while may_skip and left and masked(left[0]) != masked(line):
            del left[0]
        if not left or masked(left[0]) != masked(line):
            return f"shown:  {line}\nbut is: {left[0] if left else '(no more output)'}"
        del left[0]
        may_skip = False
    return None if may_skip or not left else f"not shown: {left[0]}"


@dataclass(frozen=True)
class Outcome:
    """What came of a step."""

    step: Step
    exit_code: int
    output: tuple[str, ...]

    @property
    def fault(self) -> str | None:
        """What is not as the page says. No output at all may be shown: then none is compared."""
        said = "\n".join(self.output)
        where = f"line {self.step.line_number}: $ {self.step.command}\n"
        if self.exit_code != self.step.exit_code:
            return f"{where}exit code {self.exit_code}, not {self.step.exit_code}\n{said}"
        if not self.step.shown or not self.step.is_read:
            return None
        difference = first_difference(self.step.shown, self.output)
        return None if difference is None else f"{where}{difference}\nof:\n{said}"
