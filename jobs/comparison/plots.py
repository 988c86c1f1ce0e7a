"""Plots of a comparison as inline SVG, in the colours that its page defines for light and dark."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from db.states import ResultStatus
from jobs.comparison.compare import Comparison, Tally
from jobs.comparison.figures import percent

_WIDTH = 640
_LABEL_WIDTH = 130
_VALUE_WIDTH = 90
_BAR = 13
_GAP = 14
_HEIGHT = 170
_FOOT = 40


@dataclass(frozen=True)
class Bars:
    """A's and B's bar under one name: their lengths from 0 to 1, and what is written behind them."""

    name: str
    a: float
    b: float
    text_a: str
    text_b: str


def score_plot(found: Comparison) -> str:
    bars = [
        Bars(
            match, float(score.share_a), float(score.share_b), percent(score.share_a), percent(score.share_b)
        )
        for match, score in found.scores.items()
    ]
    return _rows_plot("Share of right answers by score", bars)


def ends_plot(found: Comparison) -> str:
    """Finish reasons, and what did not succeed by its status."""
    a, b = _ends(found.tally_a), _ends(found.tally_b)
    names = sorted(a.keys() | b.keys(), key=lambda name: (-a[name] - b[name], name))
    return _rows_plot("Requests by how they ended", _counted(names, a, b))


def _ends(tally: Tally) -> Counter[str]:
    others = {name: num for name, num in tally.statuses.items() if name != ResultStatus.SUCCEEDED}
    return tally.finish_reasons + Counter(others)


def lengths_plot(found: Comparison) -> str:
    """How many completions were how long; each column doubles the length."""
    a, b = found.tally_a.lengths, found.tally_b.lengths
    seen = a.keys() | b.keys()
    if not seen:
        return ""
    buckets = range(min(seen), max(seen) + 1)
    counts_a = Counter({_bucket_name(bits): a[bits] for bits in buckets})
    counts_b = Counter({_bucket_name(bits): b[bits] for bits in buckets})
    return _columns_plot("Completions by tokens", _counted(list(counts_a), counts_a, counts_b))


def _bucket_name(bits: int) -> str:
    first, last = 1 << bits >> 1, (1 << bits) - 1
    return f"{first:,}" if first >= last else f"{first:,}-{last:,}"


def _counted(names: Sequence[str], a: Counter[str], b: Counter[str]) -> list[Bars]:
    most = max([a[name] for name in names] + [b[name] for name in names], default=0) or 1
    return [Bars(name, a[name] / most, b[name] / most, f"{a[name]:,}", f"{b[name]:,}") for name in names]


def _rows_plot(title: str, bars: Sequence[Bars]) -> str:
    if not bars:
        return ""
    room = _WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    parts = []
    for number, one in enumerate(bars):
        top = number * (2 * _BAR + _GAP)
        parts.append(_text(_LABEL_WIDTH - 8, top + _BAR + 4, one.name, "end"))
        for row, (side, length, text) in enumerate((("a", one.a, one.text_a), ("b", one.b, one.text_b))):
            y, width = top + row * _BAR, length * room
            parts.append(
                _rectangle(side, _LABEL_WIDTH, y, width, _BAR - 1, f"{one.name}, {side.upper()}: {text}")
            )
            parts.append(_text(_LABEL_WIDTH + width + 6, y + _BAR - 3, text, "start", "value"))
    return _svg(title, len(bars) * (2 * _BAR + _GAP) - _GAP, parts)


def _columns_plot(title: str, bars: Sequence[Bars]) -> str:
    step = _WIDTH / len(bars)
    width = min(step * 0.42, 40.0)
    parts = [f'<line class="axis" x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}"/>']
    for number, one in enumerate(bars):
        middle = (number + 0.5) * step
        for side, x, length, text in _beside(one, middle, width):
            height = length * (_HEIGHT - 20)
            hint = f"{one.name} tokens, {side.upper()}: {text}"
            parts.append(_rectangle(side, x, _HEIGHT - height, width - 1, height, hint))
        # on two heights, so that the long names of many columns do not meet
        parts.append(_text(middle, _HEIGHT + 15 + 15 * (number % 2), one.name, "middle"))
    return _svg(title, _HEIGHT + _FOOT, parts)


def _beside(one: Bars, middle: float, width: float) -> Iterator[tuple[str, float, float, str]]:
    yield "a", middle - width, one.a, one.text_a
    yield "b", middle, one.b, one.text_b


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    name = escape(title)
    return (
        f'<figure><figcaption>{name}</figcaption><svg role="img" aria-label="{name}" '
        f'viewBox="0 0 {_WIDTH} {height:g}">{"".join(parts)}</svg></figure>'
    )


def _rectangle(side: str, x: float, y: float, width: float, height: float, hint: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{side}" {place}><title>{escape(hint)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "name") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
