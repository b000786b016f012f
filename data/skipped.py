"""Items that data making leaves out, counted and named by reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field

_SHOWN = 20  # of a list


def listed(items: Sequence[object], indent: str = "") -> str:
    """The first 20 items, a line each, and how many more there are."""
    more = [f"... and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return "\n".join(f"{indent}{item}" for item in [*items[:_SHOWN], *more])


@dataclass
class Skipped:
    """Items by the reason for which they are left out; all are counted, and the first 20 of a reason are shown."""

    items: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, item: str) -> None:
        self.items.setdefault(reason, []).append(item)

    def __str__(self) -> str:
        kinds = self.items.items()
        return "\n".join(f"  {len(items)} left out: {reason}\n{listed(items, '    ')}" for reason, items in kinds)
