"""A comparison as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from html import escape

from db.queries import Job
from jobs.comparison.compare import Comparison, notes_of
from jobs.comparison.examples import Example, diff_words, shown
from jobs.comparison.figures import SCORE_TITLES, rows_of, score_rows, summary_of, verdict_of
from jobs.comparison.plots import ends_plot, lengths_plot, score_plot

# Whatever a text might smuggle in, the browser loads nothing and runs nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2024; --soft: #60646c; --line: #e0e1e6; --a: #8b8d98;
  --b: #2563eb; --good: #18794e; --bad: #cd2b31; --good-back: #ddf3e4; --bad-back: #ffe5e5; --panel: #f9f9fb; }
@media (prefers-color-scheme: dark) { :root { --back: #111113; --text: #edeef0; --soft: #b0b4ba; --line: #363a3f;
  --a: #777b84; --b: #70a5ff; --good: #4cc38a; --bad: #ff8589; --good-back: #113123; --bad-back: #3c181a;
  --panel: #18191b; } }
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--soft); font-weight: 500; }
.verdict { border-left: 4px solid var(--good); background: var(--panel); padding: .6rem 1rem; font-weight: 600; }
.verdict.bad { border-color: var(--bad); } .soft { color: var(--soft); } .up { color: var(--good); }
.down { color: var(--bad); } figure { margin: 1.5rem 0; } figcaption { font-weight: 600; margin-bottom: .5rem; }
svg { width: 100%; max-width: 40rem; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--text); }
svg .value { fill: var(--soft); } svg .axis { stroke: var(--line); } rect.a, .key.a { fill: var(--a);
  background: var(--a); } rect.b, .key.b { fill: var(--b); background: var(--b); }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; } pre { white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--panel); padding: .6rem; border-radius: 4px; font-size: 13px; }
del { background: var(--bad-back); color: var(--bad); } ins { background: var(--good-back); color: var(--good);
  text-decoration: none; }
"""


def as_html(found: Comparison, tolerance: Fraction) -> str:
    title = escape(f"{found.a.id} and {found.b.id}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        + "\n".join(_body(found, tolerance))
        + "\n</body></html>\n"
    )


def _body(found: Comparison, tolerance: Fraction) -> Iterator[str]:
    kind = "verdict bad" if found.fallen(tolerance) else "verdict"
    yield f'<p class="{kind}">{escape(verdict_of(found, tolerance))}</p>'
    yield f'<p><span class="key a"></span>A: {_job(found.a)}<br><span class="key b"></span>B: {_job(found.b)}</p>'
    yield f"<p>{escape(summary_of(found))}</p>"
    if notes := notes_of(found):
        yield f'<ul class="soft">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'
    if found.scores:
        yield "<h2>Scores</h2>"
        yield _score_table(found)
        yield score_plot(found)
    yield "<h2>Figures</h2>"
    yield _table(
        ("", "A", "B", "B - A"),
        [[escape(row.name), f"{row.a:,}", f"{row.b:,}", escape(row.delta)] for row in rows_of(found)],
    )
    yield ends_plot(found)
    yield lengths_plot(found)
    yield from _examples("Flipped", found.flipped, found.num_flipped)
    yield from _examples("Changed", found.changed, found.num_changed)


def _job(job: Job) -> str:
    name = f" {_text(job.name)}" if job.name else ""
    return f'<strong>{escape(job.id)}</strong>{name} <span class="soft">{_text(job.card_name)}, {job.state}</span>'


def _score_table(found: Comparison) -> str:
    rows = []
    for score, (name, a, b, delta, *counts) in zip(found.scores.values(), score_rows(found), strict=True):
        kind = "up" if score.share_b > score.share_a else "down" if score.share_b < score.share_a else "soft"
        rows.append([name, a, b, f'<span class="{kind}">{delta}</span>', *counts])
    return _table(SCORE_TITLES, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The cells are HTML."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def _examples(title: str, examples: Sequence[Example], num: int) -> Iterator[str]:
    if not examples:
        return
    first = f", the first {len(examples)}" if len(examples) < num else ""
    yield f"<h2>{title}: {num:,}{first}</h2>"
    for example in examples:
        change = f' <span class="soft">{_text(example.change)}</span>' if example.change else ""
        yield f"<details><summary>{_text(example.title)}{change}</summary>"
        for name, text in (("prompt", example.prompt), ("reference", example.reference)):
            if text:
                yield f'<div class="soft">{name}</div><pre>{_text(text)}</pre>'
        yield f'<div class="soft">response</div><pre>{_diff(example)}</pre></details>'


_TAGS = {"=": ("", ""), "-": ("<del>", "</del>"), "+": ("<ins>", "</ins>")}


def _diff(example: Example) -> str:
    return "".join(f"{_TAGS[sign][0]}{escape(text)}{_TAGS[sign][1]}" for sign, text in diff_words(example))


def _text(text: str) -> str:
    return escape(shown(text))
