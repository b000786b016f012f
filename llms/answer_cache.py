"""Answers that were paid for once are kept, so that a killed run goes on and a second one asks nothing."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.progress import Progress

from sottovoce.errors import SottovoceError
from sottovoce.llms.engines import Chat, Cut, Engine, Failure

PART = 256  # chats after which answers are written down


class CachedEngine(Engine):
    """An engine that remembers, in a JSONL file that only grows; the same question is asked once.

    Answers are kept by the engine's name, the whole chat, the limits and the seed. Failures are not: the next run asks
    again. If not one chat of a part was answered, the parts after it are not asked.

    Args:
        engine: asked for what is not known yet.
        file: of the answers; what a killed run left of a last line is taken off.
        progress: shows how far the asking is.

    Raises:
        SottovoceError: the file holds a line that is no answer.
    """

    def __init__(self, engine: Engine, file: Path, progress: Progress | None = None) -> None:
        self.name = engine.name
        self.engine, self.file, self.progress = engine, file, progress
        self.asked = 0  # chats that went to the engine
        self._known = _read(file) if file.is_file() else {}

    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        """See `Engine`."""
        limits = (max_new_tokens, float(temperature), seed)
        keys = [_key(self.name, limits, chat) for chat in chats]
        missing = {key: chat for key, chat in zip(keys, chats, strict=True) if key not in self._known}
        failed: dict[str, Failure] = {}
        for part in self._parts(list(missing)):
            said = self.engine.answer(
                [missing[key] for key in part], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
            )
            self.asked += len(part)
            failed |= {key: answer for key, answer in zip(part, said, strict=True) if isinstance(answer, Failure)}
            self._keep({key: answer for key, answer in zip(part, said, strict=True) if isinstance(answer, str)})
            if failed.keys() >= set(part):
                break
        unasked = Failure("not asked: no chat of the part before was answered")
        return [self._known[key] if key in self._known else failed.get(key, unasked) for key in keys]

    def _parts(self, keys: list[str]) -> Iterable[list[str]]:
        parts = [keys[start : start + PART] for start in range(0, len(keys), PART)]
        return self.progress.track(parts, description="asking the LLM") if self.progress else parts

    def _keep(self, good: dict[str, str]) -> None:
        self._known |= good
        lines = [
            json.dumps({"key": key, "answer": answer, "cut": isinstance(answer, Cut)}, ensure_ascii=False) + "\n"
            for key, answer in good.items()
        ]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as stream:
            stream.write("".join(lines).encode())
            stream.flush()
            os.fsync(stream.fileno())


def _key(name: str, limits: tuple[int, float, int], chat: Chat) -> str:
    return hashlib.sha256(json.dumps([name, limits, chat]).encode()).hexdigest()


def _read(file: Path) -> dict[str, str]:
    raw = file.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):  # a run was killed while it wrote this line
        os.truncate(file, whole)
    known: dict[str, str] = {}
    for number, line in enumerate(raw[:whole].split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            known[entry["key"]] = (Cut if entry["cut"] else str)(entry["answer"])
        except (ValueError, KeyError, TypeError):
            raise SottovoceError(f"{file}:{number}: damaged line; take it out, and it is asked for again") from None
    return known
