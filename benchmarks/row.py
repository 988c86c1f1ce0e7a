"""One line of the table."""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Row:
    """A figure beside that of the raw part, each a list with one value for each alternating pair."""

    subject: str
    unit: str
    values: list[float]
    raws: list[float]

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def raw(self) -> float:
        return median(self.raws)

    @property
    def ratio(self) -> float:
        """The median of the pairs' own ratios: a noisy machine is noisy for both of a pair."""
        return median(value / raw for value, raw in zip(self.values, self.raws, strict=True))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "value": self.value, "raw": self.raw, "ratio": self.ratio}
