"""One line of the table."""

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Row:
    """A figure, beside that of the raw part where there is one: a list each, with a value for each alternating pair.

    `reach` is what the ratio (or the figure itself, where nothing raw stands beside it) is to come to; with
    `is_less_better`, to stay under.
    """

    subject: str
    unit: str
    values: list[float]
    raws: list[float] = field(default_factory=list)
    reach: float | None = None
    is_less_better: bool = False
    note: str = ""

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def raw(self) -> float | None:
        return median(self.raws) if self.raws else None

    @property
    def ratio(self) -> float | None:
        """The median of the pairs' own ratios: a noisy machine is noisy for both of a pair."""
        if not self.raws:
            return None
        return median(value / raw for value, raw in zip(self.values, self.raws, strict=True))

    @property
    def is_reached(self) -> bool | None:
        """None for a row that is only there to compare with."""
        if self.reach is None:
            return None
        judged = self.value if self.ratio is None else self.ratio
        return judged <= self.reach if self.is_less_better else judged >= self.reach

    def as_dict(self) -> dict[str, Any]:
        derived = {"value": self.value, "raw": self.raw, "ratio": self.ratio, "is_reached": self.is_reached}
        return {**asdict(self), **derived}
