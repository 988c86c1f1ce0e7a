"""Reports of a comparison: they hold what was found, and no text of a user can leave its place in them."""

import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from db.queries import Counts, Job
from db.states import InputFormat, JobState
from jobs.comparison.compare import Comparison, Score, Tally
from jobs.comparison.examples import Example
from jobs.comparison.markdown import as_markdown
from jobs.comparison.page import as_html
from jobs.comparison.pairs import By
from jobs.comparison.plain import as_text
from jobs.comparison.scores import Match

_NONE = Fraction(0)
_EVIL = "</pre><script>alert(1)</script>\n```\n# heading\x1b[31m\x00 \"'&<img src=x onerror=y>"


def _job(job_id: str, name: str | None = None) -> Job:
    return Job(
        id=job_id,
        name=name,
        state=JobState.COMPLETED,
        priority=0,
        card_name="tiny",
        card_sha256="c",
        input_name="in.jsonl",
        input_sha256="i",
        input_format=InputFormat.CARD,
        sampling=None,
        created_at=1.0,
        started_at=2.0,
        finished_at=3.0,
        counts=Counts(succeeded=3, failed=1),
        prompt_tokens=10,
        completion_tokens=20,
        requests_per_s=None,
        completion_tokens_per_s=None,
    )


def _example(**values: Any) -> Example:
    made = Example(0, 0, "p", "Capital?", "Paris", "succeeded", "succeeded", "Paris", "It is Rome", {})
    return replace(made, **values)


def _tally(**values: Any) -> Tally:
    tally = Tally(**values)
    tally.statuses.update(succeeded=3, failed=1)
    tally.finish_reasons.update(stop=3)
    tally.lengths.update({0: 1, 3: 2, 9: 1})
    return tally


@pytest.fixture
def found() -> Comparison:
    return Comparison(
        _job("job_a", "monday"),
        _job("job_b", "tuesday"),
        By.CUSTOM_ID,
        num_compared=4,
        num_only_b=1,
        num_changed=1_200,
        num_flipped=1,
        num_other_requests=2,
        tally_a=_tally(prompt_tokens=1_000),
        tally_b=_tally(prompt_tokens=1_234),
        scores={Match.EXACT: Score(4, 3, 2, 0, 1), Match.JSON: Score(4, 1, 3, 2, 0)},
        changed=[_example(), _example(custom_id="q", answer_b=None, status_b="failed: engine_error")],
        flipped=[_example(flips={Match.EXACT: False})],
    )


_FORMS = {"text": as_text, "markdown": as_markdown, "html": as_html}


@pytest.mark.parametrize("form", _FORMS)
def test_every_report_holds_the_figures_and_the_verdict(found: Comparison, form: str) -> None:
    text = _FORMS[form](found, _NONE).replace("\\", "")
    for part in (
        *("job_a", "job_b", "monday", "tuesday", "4 requests compared by custom_id", "1 only in B"),
        *("1,200", "75.0%", "50.0%", "-25.0", "+50.0", "1,234", "+234", "exact: now wrong", "p (line 1)"),
        *("fell by more than 0.0%: exact", "failed: engine_error"),
    ):
        assert part in text
    assert "no score fell by more than 25.0%" in _FORMS[form](found, Fraction(1, 4))


@pytest.mark.parametrize("form", _FORMS)
def test_without_references_there_are_no_scores(found: Comparison, form: str) -> None:
    found.scores, found.flipped, found.num_flipped = {}, [], 0
    text = _FORMS[form](found, _NONE)
    assert "no request has a reference that could be scored" in text
    assert "Share of right" not in text
    assert "now wrong" not in text


class _Page(HTMLParser):
    """Every tag and attribute, and whether the tags close as they should."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def _evil(found: Comparison) -> Comparison:
    example = _example(
        custom_id=_EVIL, prompt=_EVIL, reference=_EVIL, answer_a=_EVIL, answer_b=_EVIL + " more"
    )
    return replace(found, a=_job("job_a", _EVIL), changed=[example], flipped=[example])


def test_the_page_is_whole_and_has_no_tag_that_a_text_brought(found: Comparison) -> None:
    plain, evil = _Page(as_html(found, _NONE)), _Page(as_html(_evil(found), _NONE))
    assert evil.tags <= plain.tags
    assert evil.attributes <= plain.attributes
    assert not {"script", "img", "link", "iframe", "object"} & evil.tags
    assert not {"href", "src", "style", "onerror"} & evil.attributes


def test_the_page_needs_nothing_from_anywhere(found: Comparison) -> None:
    text = as_html(found, _NONE)
    assert "Content-Security-Policy\" content=\"default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import|@font-face", text)
    assert "prefers-color-scheme: dark" in text


def test_plots_are_svg_that_stays_in_its_frame(found: Comparison) -> None:
    plots = re.findall(r"<svg.*?</svg>", as_html(found, _NONE), re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        tree = ElementTree.fromstring(plot)  # noqa: S314  our own text
        _, _, width, height = map(float, tree.attrib["viewBox"].split())
        boxes = tree.findall("rect")
        assert boxes
        for box in boxes:
            x, y, w, h = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
            assert (x >= 0, y >= 0, w >= 0, h >= 0) == (True,) * 4
            assert x + w <= width + 0.2
            assert y + h <= height + 0.2


def test_the_lengths_plot_names_every_doubling(found: Comparison) -> None:
    text = as_html(found, _NONE)
    for name in (">0<", ">1<", ">4-7<", ">256-511<"):
        assert name in text
    assert "4-7 tokens, A: 2" in text


def test_no_text_leaves_its_fence_in_markdown(found: Comparison) -> None:
    text = as_markdown(_evil(found), _NONE)
    outside, fence = [], ""
    for line in text.split("\n"):
        run = re.match(r" {0,3}(`{3,})", line)
        if not fence and run:
            fence = run[1]
        elif fence and line.strip() == fence:
            fence = ""
        elif not fence:
            outside.append(line)
    assert fence == ""
    assert not any(line.startswith("# heading") for line in outside)
    assert "<script" not in re.sub(r"\\<", "", "\n".join(outside))
    assert [line for line in outside if line.startswith("# ")] == ["# job_a and job_b"]


@pytest.mark.parametrize("form", _FORMS)
def test_no_control_character_reaches_a_terminal(found: Comparison, form: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", _FORMS[form](_evil(found), _NONE))


def test_the_terminal_sees_a_few_examples(found: Comparison) -> None:
    long = _example(answer_a="\n".join("abcdefghijklmnop"), answer_b="\n".join("ABCDEFGHIJKLMNOP"))
    text = as_text(
        replace(found, changed=[long] * 5, flipped=[_example(flips={Match.JSON: True})] * 20, num_flipped=30),
        _NONE,
    )
    assert text.count("@@") == 2 * 3
    assert text.count("json: now right") == 10
    assert "… and 20 more" in text
    assert "… and 1,197 more changed" in text
    assert text.count("  …\n") >= 3
