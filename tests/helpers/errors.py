"""What a test asks of a refusal: the kind of fault and its place, not the English of the message."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

from sottovoce.errors import Code, SottovoceError


@contextmanager
def refused(
    code: Code, where: object = "", kind: type[SottovoceError] = SottovoceError
) -> Iterator[pytest.ExceptionInfo[SottovoceError]]:
    """The block raises a `kind`; it, or one of its faults, has this code, and its place ends so."""
    with pytest.raises(kind) as caught:
        yield caught
    told = [(fault.code, fault.where) for fault in (caught.value, *caught.value.faults)]
    assert any(found == code and place.endswith(str(where)) for found, place in told), (code, where, told)


def faulty(table: Mapping[Code, Sequence[str | tuple[str, str]]]) -> list[tuple[Code, str, str]]:
    """Each override with its code and its place, from a table by code; the place is its key where none is given."""
    rows = [(code, row) for code, rows in table.items() for row in rows]
    return [(code, row, row.partition("=")[0]) if isinstance(row, str) else (code, *row) for code, row in rows]
