"""Answers to the rows that are to be scored, by all processes of a run: a journal in the folder of the scores.

Rows are cut into parts, the same ones in every process; a part is answered together whoever answers it, and is a line
of the journal, so that scoring that was killed goes on where it was.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sottovoce.data.examples import Example
from sottovoce.json_journal import Journal
from sottovoce.lightning_modules.run import Run
from sottovoce.llms.answer_cache import digest_key
from sottovoce.llms.chat_template import Placeholder
from sottovoce.progress import Progress
from sottovoce.shared_parts import parts_to_make
from sottovoce.tensor_files import update_digest
from sottovoce.training.spoken_prompt import SpeechPlaceholder, dialogue_of

Row = tuple[str, Example]  # (choice of slots, example)
_PREFIX, _SUFFIX = ".answers-", ".jsonl"  # of a journal's name, with the digest of the weights between them
_log = logging.getLogger(__name__)


class SharedAnswers:
    """Answers of one model, as it is now, that go to one folder of scores; they are told apart by digests of rows.

    Args:
        run: whose module answers; its slots and its evaluation are part of what an answer depends on.
        folder: of the scores.
        is_over: whether the scores are there, so that nothing is left to do for a process that helps. None: this one
            is to score, and has all answers in the end.
    """

    def __init__(self, run: Run, folder: Path, is_over: Callable[[], bool] | None = None) -> None:
        self.folder, self.is_over = folder, is_over
        self._run, self._model = run, _model_digest(run)
        self._journal = Journal(folder / f"{_PREFIX}{self._model[:16]}{_SUFFIX}")
        self.known: dict[str, str] = {}
        self.given = 0  # answers of this process

    def give(
        self, rows: Sequence[Row], size: int, answer: Callable[[Sequence[Row]], Sequence[str]], progress: Progress
    ) -> list[str]:
        """The answer to each row, in their order; of a process that helps, empty ones where it knows none.

        Args:
            rows: all that are to be answered, the same in every process.
            size: how many are answered together.
            answer: answers some rows together.
            progress: shows parts, whoever answers them.
        """
        keys = [self._key(*row) for row in rows]
        row_of = dict(zip(keys, rows, strict=True))
        order = list(row_of)
        parts = [tuple(order[start : start + size]) for start in range(0, len(order), size)]
        task = progress.start("generating answers", len(parts), "batch")
        due = parts_to_make(self.folder, parts, self._is_made, self._read, task.advance, waits=self.is_over is None)
        self._read()
        with closing(due):
            for part in due:
                missing = [key for key in part if key not in self.known]
                said = [str(text) for text in answer([row_of[key] for key in missing])]
                self._add(list(map(list, zip(missing, said, strict=True))))
        task.end()
        if self.given < len(order):
            _log.info(
                f"{self.given} of {len(order)} answers by this process, the others by others, or kept from before"
            )
        return [self.known.get(key, "") for key in keys]

    def _is_made(self, part: tuple[str, ...]) -> bool:
        return self.known.keys() >= set(part) or (self.is_over is not None and self.is_over())

    def _read(self) -> None:
        for line in self._journal.news()[1]:
            if isinstance(line, list) and len(line) == 2 and line[0] == digest_key(line[1]):
                self.known |= dict(line[1])

    def _add(self, answers: list[list[str]]) -> None:
        """Keep keys with their answers, as one line: all or none of them are found again."""
        self._journal.append([[digest_key(answers), answers]])
        self.known |= dict(answers)
        self.given += len(answers)

    def _key(self, mode: str, example: Example) -> str:
        """The digest of all that an answer depends on beside the model."""
        prompt = [(turn.role, [self._piece(p) for p in turn.pieces]) for turn in dialogue_of(example, self._run.slots)]
        return digest_key(mode, example.task, example.utterance.id, prompt)

    def _piece(self, piece: str | Placeholder) -> Any:
        """A piece of a turn; of speech, the slot and the digest of the samples."""
        if isinstance(piece, str):
            return piece
        assert isinstance(piece.key, SpeechPlaceholder)
        return [piece.key.slot, self._run.audio_reader.keys.get(piece.key.clip, str(piece.key.clip))]


def forget_answers(folder: Path) -> None:
    """Delete the journals of a folder whose scores have been written, and those of other weights."""
    for file in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        file.unlink(missing_ok=True)


def _model_digest(run: Run) -> str:
    """The SHA-256 of what answers: trained and frozen weights, how features are kept, how long answers may be."""
    digest = hashlib.sha256()
    for name, weight in sorted(run.module.trained().items()):
        update_digest(digest, weight, name)
    llm, encoder, data = run.targets.fingerprint, run.module.encoder.fingerprint(), run.recipe.data
    node = run.recipe.evaluation
    return digest_key(digest.hexdigest(), llm, encoder, bool(data.cache), data.cache_dtype, node.max_new_tokens)
