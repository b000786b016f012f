"""What a test asks of a refusal: the kind of fault and its place, not the English of the message."""

from collections.abc import Iterator
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
