"""Items that are left out, counted and named by reason; faults of many lines, told once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sottovoce.errors import Code, ManifestError, SottovoceError

_SHOWN = 20  # of a list
_OUTSIDE = "unsafe"  # whose problem begins with the clip, another one in each line
_EXAMPLES = 3  # further places of a fault that many lines have


class LineFault(ManifestError):
    """What is wrong with one line of a manifest; `problem` is that without the line's place and id."""

    problem: str = ""
    name: str = ""  # id of the line, as far as it is known

    @classmethod
    def of_line(cls, place: str, name: str, problem: str, code: Code | None) -> "LineFault":
        """A fault that reads `file:line: id: problem`."""
        fault = cls(": ".join(filter(None, (place, name, problem))), code=code, where=place)
        fault.problem, fault.name = problem, name
        return fault


def summary(faults: Sequence[SottovoceError]) -> list[str]:
    """Each fault in a line; one that several lines have is told of the first, with their number and three others."""
    alike: dict[object, list[SottovoceError]] = {}
    for number, fault in enumerate(faults):
        problem = isinstance(fault, LineFault) and (fault.code if fault.code == _OUTSIDE else fault.problem)
        same = problem and (fault.where.rpartition(":")[0], problem)
        alike.setdefault(same or number, []).append(fault)
    return [_told(first, others) for first, *others in alike.values()]


def _told(first: SottovoceError, others: Sequence[SottovoceError]) -> str:
    if not others:
        return str(first)
    places = [": ".join(filter(None, (other.where, getattr(other, "name", "")))) for other in others[:_EXAMPLES]]
    such = "such as" if len(others) > _EXAMPLES else "which are"
    return f"{first} (and {len(others):,} more lines, {such} {', '.join(places)})"


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
