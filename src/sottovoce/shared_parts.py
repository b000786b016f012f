"""Parts of a work that processes on one disk share: each takes what nobody has, and takes over what a dead one had."""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from sottovoce.byte_claims import Claims, NoClaimsError
from sottovoce.io import file_lock

PAUSE = 0.1  # seconds between two looks at parts that others have, when nothing else is left
Part: TypeAlias = tuple[str, ...]  # keys of what is made together
_log = logging.getLogger(__name__)


def parts_to_make(
    folder: Path, parts: Sequence[Part], is_made: Callable[[Part], bool], refresh: Callable[[], None],
    made: Callable[[], None] = lambda: None, *, waits: bool = True,
) -> Generator[Part, None, None]:  # fmt: skip
    """The parts that this process is to make, one after another; each is its own until the next is asked for.

    What is made has to be on the disk by then, where `refresh` finds it. Close it where it may not come to its end.

    Args:
        folder: of the claims, see `Claims`: no others of this process may be open there.
        parts: the same ones in every process, by content.
        is_made: whether all of a part is there, as far as this process knows.
        refresh: take in what others have made.
        made: called for each part that is there, whoever has made it.
        waits: whether to wait for parts that others have, until they are made or those others are dead. Where there are
            no locks on bytes, one process works at a time, and one that does not wait has nothing to do.
    """
    with _claiming(folder, waits=waits) as (claims, works):
        queue, taken = deque(parts if works else ()), list[Part]()
        while queue or (taken and waits):
            if not queue:
                time.sleep(PAUSE)
                refresh()
                queue, taken = deque(taken), []
            part = queue.popleft()
            if not is_made(part):
                if claims is not None and not claims.take(name := "\n".join(part)):
                    taken.append(part)
                    continue
                refresh()  # whoever had it until now may have made it
                if not is_made(part):
                    yield part
                if claims is not None:
                    claims.give_back(name)
            made()


@contextmanager
def _claiming(folder: Path, *, waits: bool) -> Iterator[tuple[Claims | None, bool]]:
    """Claims on parts, None where there are no locks; and whether this process may work."""
    try:
        claims = Claims(folder)
    except NoClaimsError as error:
        if not waits:
            yield None, False
            return
        _log.warning(f"one process works at a time: {error}")
        with file_lock(folder):
            yield None, True
        return
    try:
        yield claims, True
    finally:
        claims.close()
