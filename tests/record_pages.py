"""Writes the outputs in the tutorials anew, from the real engine: `python tests/record_pages.py docs/tutorial-*.md`.

Needs what `make test` sets up. An output with a line `...` in it, and one that is not read, are left as they are.
"""

import os
import sys
import tempfile
from pathlib import Path

from page_shell import checkout, environment_of, run_page
from pages import ANY_LINES, ID, Outcome, as_in_a_terminal, steps

_ROOT = Path(__file__).parents[1]


def recorded(text: str, outcomes: list[Outcome]) -> str:
    """The page with the outputs of `outcomes` in the place of its own."""
    lines = text.split("\n")
    renamed: dict[str, str] = {}
    for outcome in reversed(outcomes):
        step = outcome.step
        if not step.shown or ANY_LINES in step.shown or step.is_worker:
            continue
        start = step.line_number + step.command.count("\n")
        end = next(at for at in range(start, len(lines)) if lines[at].startswith(("$ ", "```")))
        is_ours = step.command.startswith(("promptmill ", "make "))
        lines[start:end] = as_in_a_terminal(outcome.output) if is_ours else outcome.output
        old_ids, new_ids = (ID.findall("\n".join(texts)) for texts in (step.shown, outcome.output))
        renamed.update(zip(old_ids, new_ids, strict=False))
    return ID.sub(lambda found: renamed.get(found[0], found[0]), "\n".join(lines))


def main() -> None:
    for name in sys.argv[1:]:
        page = Path(name)
        text = page.read_text("utf-8")
        with tempfile.TemporaryDirectory() as made:
            folder = checkout(Path(made), weights=_ROOT / ".promptmill" / "weights")
            environment = environment_of(folder, dict(os.environ))
            outcomes = []
            for outcome in run_page(steps(text), folder, environment, timeout_s=300):
                print(
                    f"$ {outcome.step.command}",
                    *outcome.output,
                    f"[{outcome.exit_code}]",
                    sep="\n",
                    flush=True,
                )
                outcomes.append(outcome)
        page.write_text(recorded(text, outcomes), "utf-8")
        for fault in [outcome.fault for outcome in outcomes if outcome.exit_code != outcome.step.exit_code]:
            sys.exit(f"{name}: {fault}")


if __name__ == "__main__":
    main()
