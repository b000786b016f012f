"""Cache of LLM answers: a killed run goes on where it was, and a second one asks nothing."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path

from sottovoce.byte_claims import alone
from sottovoce.errors import SottovoceError
from sottovoce.io import storage_errors
from sottovoce.json_journal import write_all
from sottovoce.llms.engines import Chat, Cut, Engine, Failure, answered
from sottovoce.progress import Progress

PART = 256  # chats after which answers are written down


class AnswerCache:
    """Answers by key, in a JSONL file that only grows; its folder is made when the first is added.

    Several processes may add to it. A killed one loses at most the line that it was writing. Each line has a CRC-32, so
    that a changed one is not learned from: a line that is no answer is a `SottovoceError`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.answers: dict[str, str] = {}
        self._read, self._lines = 0, 0  # bytes and lines that have been read
        self.read()

    def read(self) -> None:
        """Take in what has been added since the last call, by whichever process, but for an unfinished line."""
        if not self.file.is_file():
            return
        with self.file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < self._read:  # another file than before
                self._read, self._lines = 0, 0
            stream.seek(self._read)
            raw = stream.read()
        raw = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(raw.split(b"\n")[:-1], self._lines + 1):
            try:
                entry = json.loads(line)
                key, answer, cut = entry["key"], entry["answer"], entry["cut"]
                if entry["crc32"] != _checksum(key, answer, cut):
                    raise ValueError("changed since it was written")
            except (ValueError, KeyError, TypeError, RecursionError):
                why = "damaged line, or one of an older version; it is safe to take it out: its answer is asked for "
                raise SottovoceError.at(f"{self.file}:{number}", "damaged", f"{why}again") from None
            self.answers[key] = Cut(answer) if cut else answer
        self._read, self._lines = self._read + len(raw), self._lines + raw.count(b"\n")

    def add(self, answers: Mapping[str, str]) -> None:
        """Keep answers by their keys; they are on the disk when this returns, or `StorageError`."""
        lines = []
        for key, answer in answers.items():
            cut = isinstance(answer, Cut)
            entry = {"key": key, "answer": answer, "cut": cut, "crc32": _checksum(key, answer, cut)}
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
        with storage_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileIO(self.file, "a+") as stream, alone(stream):
                end = _cut_off_unfinished(stream)
                try:
                    write_all(stream, "".join(lines).encode())
                    os.fsync(stream.fileno())
                except OSError:
                    os.ftruncate(stream.fileno(), end)
                    raise
        self.answers |= answers


class CachedEngine(Engine):
    """An engine with a cache: the same chat, with the same limits and seed, is sent once.

    Failures are not kept: the next run asks again. If not one chat of a part was answered, the parts after it are not
    sent. `progress` shows how many parts are done. `file` and errors are those of `AnswerCache`.
    """

    def __init__(
        self, engine: Engine, file: Path, progress: Progress | None = None, label: str = "querying the LLM"
    ) -> None:
        self.name = engine.name
        self.engine, self.cache, self.progress, self.label = engine, AnswerCache(file), progress, label
        self.asked = 0  # chats that went to the engine

    def answer(
        self, chats: Sequence[Chat], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | Failure]:
        limits = (max_new_tokens, float(temperature), seed)
        keys = [digest_key(self.name, limits, chat) for chat in chats]
        known = self.cache.answers
        missing = {key: chat for key, chat in zip(keys, chats, strict=True) if key not in known}
        failed: dict[str, Failure] = {}
        for part in self._parts(list(missing)):
            answers = self.engine.answer(
                [missing[key] for key in part], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
            )
            self.asked += len(part)
            kept = {
                key: answered(answer) if isinstance(answer, str) else answer
                for key, answer in zip(part, answers, strict=True)
            }
            failed |= {key: answer for key, answer in kept.items() if isinstance(answer, Failure)}
            self.cache.add({key: answer for key, answer in kept.items() if isinstance(answer, str)})
            if failed.keys() >= set(part):
                break
        unsent = Failure("not sent: no chat of the part before was answered")
        return [answered(known[key]) if key in known else failed.get(key, unsent) for key in keys]

    def _parts(self, keys: list[str]) -> Iterable[list[str]]:
        parts = [keys[start : start + PART] for start in range(0, len(keys), PART)]
        return self.progress.track(parts, description=self.label, unit="batch") if self.progress else parts


def digest_key(*parts: object) -> str:
    """The key of an answer: SHA-256 of everything that it depends on, as JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _cut_off_unfinished(stream: FileIO) -> int:
    """Cut off what a killed process has left of a line; returns where the file ends. Nobody else may be writing."""
    stop = end = stream.seek(0, os.SEEK_END)
    while stop and os.pread(stream.fileno(), 1, stop - 1) != b"\n":
        stop -= 1
    if stop < end:
        os.ftruncate(stream.fileno(), stop)
    return stop


def _checksum(key: str, answer: str, cut: bool) -> str:
    return f"{zlib.crc32(json.dumps([key, answer, cut]).encode()):08x}"
