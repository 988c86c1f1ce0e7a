"""The README and the pages of docs/ are true: every command in them runs, and its output is as shown."""

import os
import re
import shlex
from pathlib import Path

import click
import pytest
from page_shell import NOT_RUN, checkout, environment_of, run_page
from pages import ANY_LINES, Step, blocks, first_difference, steps

from cli import main

_ROOT = Path(__file__).parents[2]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]
_each_page = pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
# What a page takes for granted that its reader has: lines of a console block that come before all of its own.
_BEFORE = {
    "README.md": ("$ cp examples/requests.jsonl prompts.jsonl", "$ cp examples/requests.jsonl evals.jsonl"),
    "evaluations.md": ("$ cp examples/requests.jsonl evals.jsonl",),
    "gpu.md": ("$ cp examples/requests.jsonl prompts.jsonl",),
    "reruns.md": (
        "$ cp examples/requests.jsonl prompts.jsonl",
        """$ echo '{"prompt": "one two three", "max_tokens": 2047}' >> prompts.jsonl""",
        "$ promptmill worker",
        "$ promptmill submit prompts.jsonl",
        "job_4k9x2m7tqa: 41 requests for smollm2-135m-instruct",
        "job_4k9x2m7tqa",
        "$ promptmill wait last",
    ),
    "reuse.md": ("$ cp examples/requests.jsonl evals.jsonl",),
    "schedules.md": ("$ cp examples/requests.jsonl evals.jsonl",),
}
# Answers come at once; what is waited for is short.
_QUICK = {"engine": "echo", "flush_s": 0.2, "heartbeat_s": 0.5, "sweep_s": 0.5}


@_each_page
def test_every_command_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    before = "\n".join(("```console", *_BEFORE.get(page.name, ()), "```"))
    environment = environment_of(folder, os.environ, **_QUICK)
    all_steps = steps(before) + steps(page.read_text("utf-8"))
    faults = [outcome.fault for outcome in run_page(all_steps, folder, environment)]
    assert not [fault for fault in faults if fault], "\n\n".join(fault for fault in faults if fault)


def _steps() -> list[Step]:
    return [step for page in _PAGES for step in steps(page.read_text("utf-8"))]


def test_only_what_is_listed_is_not_run_and_no_promptmill_command_is() -> None:
    for start, why in NOT_RUN.items():
        assert why
        assert any(step.command.startswith(start) for step in _steps()), f"no page has: {start}"
        assert "promptmill " not in start


@_each_page
def test_no_command_hides_in_a_block_of_another_kind(page: Path) -> None:
    for number, kind, _, lines in blocks(page.read_text("utf-8")):
        if kind != "console" and page.name != "session.md":
            assert kind in {"json", "yaml", "ini", "toml", "jinja", "text"}, f"line {number}"
            assert not [line for line in lines if line.startswith(("$ ", "promptmill "))], f"line {number}"


@_each_page
def test_every_command_in_a_sentence_exists_with_its_options(page: Path) -> None:
    for said in re.findall(r"`promptmill ([a-z][^`]*)`", page.read_text("utf-8")):
        words = shlex.split(said, comments=True)
        command: click.Command = main
        while isinstance(command, click.Group) and words:
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options, said


def test_the_links_of_the_pages_lead_somewhere() -> None:
    for page in _PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


# the reader of pages itself


_PAGE = """
```console
$ cat > a.txt <<'EOF'
$ no command
EOF
$ echo one \\
  two   # exit code 3
one two
```

<!-- the answers differ -->

```console
$ promptmill worker
```
"""


def test_a_page_is_taken_apart() -> None:
    document, echo, worker = steps(_PAGE)
    assert document.command == "cat > a.txt <<'EOF'\n$ no command\nEOF"
    assert (echo.line_number, echo.exit_code, echo.shown) == (6, 3, ("one two",))
    assert document.exit_code == 0
    assert worker.is_worker
    assert [step.is_read for step in (document, echo, worker)] == [True, True, False]


@pytest.mark.parametrize(
    ("shown", "actual", "is_same"),
    [
        (["job_0123456789: 4 requests"], ["job_abcdefghij: 4 requests"], True),
        (["job_0123456789: 4 requests"], ["job_abcdefghij: 5 requests"], False),
        (["a completed in 7s: 1 failed"], ["queued  0 of 1", "a completed in 1m 02s: 1 failed"], True),
        (["a", ANY_LINES, "c"], ["a", "b", "b", "c"], True),
        (["a", ANY_LINES, "c"], ["a", "b"], False),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        (['{"response":"yes"}'], ['{"response":"\\"no\\", he said"}'], True),
        (['{"status":"failed"}'], ['{"status":"succeeded"}'], False),
    ],
)
def test_an_output_is_compared_without_what_differs_each_time(
    shown: list[str], actual: list[str], *, is_same: bool
) -> None:
    assert (first_difference(shown, actual) is None) is is_same


def test_a_wrong_exit_code_and_a_command_that_hangs_are_told(tmp_path: Path) -> None:
    (outcome,) = run_page(steps("```console\n$ false\n```\n"), tmp_path, dict(os.environ))
    assert outcome.fault is not None
    assert "exit code 1, not 0" in outcome.fault
    with pytest.raises(AssertionError, match="line 2: not over after"):
        list(run_page(steps("```console\n$ sleep 60\n```\n"), tmp_path, dict(os.environ), timeout_s=0.2))
