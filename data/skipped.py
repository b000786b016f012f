"""Items that data making leaves out, counted and named by reason."""

from dataclasses import dataclass, field

_SHOWN = 20  # items of each reason


@dataclass
class Skipped:
    """Items by the reason for which they are left out; all are counted, and the first 20 of a reason are shown."""

    items: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, item: str) -> None:
        self.items.setdefault(reason, []).append(item)

    def __str__(self) -> str:
        lines = []
        for reason, items in self.items.items():
            more = [f"    ... and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
            lines += [f"  {len(items)} left out: {reason}", *(f"    {item}" for item in items[:_SHOWN]), *more]
        return "\n".join(lines)
