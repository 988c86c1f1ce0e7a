"""Writing a comparison's reports: each file private, and there whole or not at all."""

from collections.abc import Callable
from fractions import Fraction

from db.errors import SettingsError
from jobs.comparison.compare import Comparison
from jobs.comparison.markdown import as_markdown
from jobs.comparison.page import as_html
from jobs.output import check_output, output

_Form = Callable[[Comparison, Fraction], str]


class Reports:
    """Where the reports go; made before the work, so that a path that cannot be is found at once."""

    def __init__(self, markdown_path: str | None, html_path: str | None, *, is_stdout_taken: bool) -> None:
        wanted: list[tuple[str | None, _Form]] = [(markdown_path, as_markdown), (html_path, as_html)]
        self._files = [(path, form) for path, form in wanted if path is not None]
        paths = [path for path, _ in self._files]
        self.takes_stdout = "-" in paths
        if len(set(paths)) < len(paths) or (self.takes_stdout and is_stdout_taken):
            raise SettingsError("two reports would go to one place; give each a file of its own")
        for path in paths:
            check_output(path)

    def write(self, found: Comparison, tolerance: Fraction) -> list[str]:
        """The paths written, without stdout."""
        for path, form in self._files:
            with output(path) as file:
                file.write(form(found, tolerance).encode())
        return [path for path, _ in self._files if path != "-"]
