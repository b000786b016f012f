"""Requests that wait for the LLM: a bounded queue, and a thread that answers what waits together."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sottovoce.data.examples import Batch
from sottovoce.frames import Frames
from sottovoce.llms.chat_template import Placeholder, Segment
from sottovoce.llms.row_batches import group_by_length
from sottovoce.llms.row_generation import generate_rows
from sottovoce.llms.streaming import TextPieces
from sottovoce.serving.http.errors import Refusal, refusal_of, too_long
from sottovoce.serving.http.metrics import Metrics
from sottovoce.serving.model import MAX_NEW_TOKENS, Model
from sottovoce.training.spoken_prompt import SpeechPlaceholder

_SHARE = 0.25  # of the longest prompt, that the shortest of those that are answered together has at least
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """The end of an answer: all of its text, and what it took in tokens."""

    text: str
    reason: Literal["stop", "length"]
    prompt_tokens: int
    tokens: int


Event: TypeAlias = str | Done | Refusal  # a piece of the answer; its end


@dataclass(eq=False)
class Job:
    """One request.

    Args:
        prompt: token ids and speech placeholders.
        clips: the waveforms that these name, (samples,) at the encoder's rate.
        max_new_tokens: of the answer; None: the server's own limit, or what the context leaves room for.
        streams: whether pieces are told as they come.
    """

    prompt: list[Segment]
    clips: dict[Path, Tensor]
    max_new_tokens: int | None
    streams: bool
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    left: bool = False  # nobody waits for the answer any more
    begun: bool = False  # something of the answer has been told
    ended: bool = False

    def tell(self, event: Event) -> None:
        """From the thread that answers; nothing more after an end."""
        if self.ended:
            return
        self.begun, self.ended = True, not isinstance(event, str)
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server has ended
            self.left = True


class Answerer:
    """Takes what waits, up to `batch_size`, and answers it together, in a thread of its own.

    Args:
        model: that answers.
        batch_size: requests, and clips, that go through the models together.
        capacity: requests that may be there, waiting ones and those in work.
        max_new_tokens: of an answer whose request does not say.
    """

    def __init__(
        self, model: Model, metrics: Metrics, *, batch_size: int, capacity: int, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> None:
        self.model, self.metrics, self.llm = model, metrics, model.module.llm
        self.batch_size, self.capacity, self.max_new_tokens = batch_size, capacity, max_new_tokens
        self.admitted, self.seconds = 0, 1.0  # how long a request takes, on average
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._pool = ThreadPoolExecutor(capacity, "row") if self.llm.remote is not None else None
        self._thread = threading.Thread(target=self._run, name="answerer", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    def admit(self) -> None:
        """Count a request, from the event loop; `leave` follows. A `Refusal` (429) where there are too many."""
        if self.admitted >= self.capacity:
            wait = max(1, min(60, round(self.seconds)))
            told = (
                f"the server is busy: {self.admitted} requests are there, and it takes no more; try again in {wait} s"
            )
            raise Refusal(429, told, code="queue_full", headers={"Retry-After": str(wait)})
        self.admitted += 1
        self.metrics.admitted.set(self.admitted)

    def leave(self, job: Job | None, seconds: float) -> None:
        """A request has its answer, or nobody waits for it any more; it took so many seconds."""
        self.admitted -= 1
        self.metrics.admitted.set(self.admitted)
        self.seconds += 0.1 * (seconds - self.seconds)
        if job is not None:
            job.left = True
            with self._changed:
                if job in self._waiting:
                    self._waiting.remove(job)

    def submit(self, job: Job) -> None:
        """Let a request wait for its turn; its events tell the answer."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Answer what waits, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        if self._pool is not None:
            self._pool.shutdown()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                jobs = [self._waiting.popleft() for _ in range(min(self.batch_size, len(self._waiting)))]
            self.metrics.batch.observe(len(jobs))
            self._answer_each(jobs)

    def _answer_each(self, jobs: Sequence[Job]) -> None:
        """Together; where that fails, one by one: a request fails by its own fault alone."""
        try:
            self._answer(jobs)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
                log.warning("out of memory with %d requests at once: a smaller --batch-size saves time", len(jobs))
            if len(jobs) > 1:
                for job in jobs:
                    self._answer_each([job]) if not job.begun else _tell_failure(job, error)
                return
            _tell_failure(jobs[0], error)

    @torch.no_grad()
    def _answer(self, jobs: Sequence[Job]) -> None:
        jobs = [job for job in jobs if not job.left]
        prompts = self._prompts(jobs)
        rows: list[tuple[Job, Tensor, int]] = []
        for job, prompt in zip(jobs, prompts, strict=True):
            limit, context = job.max_new_tokens or self.max_new_tokens, self.llm.context_length
            if context is not None:
                if job.max_new_tokens is None:
                    limit = max(1, min(limit, context - len(prompt)))
                if len(prompt) + limit > context:
                    job.tell(too_long(len(prompt), limit, context))
                    continue
            rows.append((job, prompt, limit))
        if self._pool is not None:  # another process, which batches by itself: nobody waits for its answers here
            for row in rows:
                self._pool.submit(self._generate_alone, row)
            return
        for group in group_by_length([len(prompt) for _, prompt, _ in rows], _SHARE):
            self._generate([rows[row] for row in group])

    def _prompts(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Each (tokens, llm_dim); clips of like length are heard together."""
        waves = {clip: wave for job in jobs for clip, wave in job.clips.items()}
        asked = [part for job in jobs for part in job.prompt if isinstance(part, Placeholder)]
        order = sorted(waves, key=lambda clip: len(waves[clip]))
        heard: dict[Hashable, Tensor] = {}
        for start in range(0, len(order), self.batch_size):
            part = {clip: row for row, clip in enumerate(order[start : start + self.batch_size])}
            batch = Batch([], part, Frames.pad([waves[clip] for clip in part])).to(self.model.device)
            here: list[Segment] = [each for each in asked if _clip(each) in part]
            heard |= self.model.module.speech_embeddings(batch, [here])[0]
        return self.llm.embed_all([job.prompt for job in jobs], heard) if jobs else []

    def _generate_alone(self, row: tuple[Job, Tensor, int]) -> None:
        if row[0].left:
            return
        try:
            self._generate([row])
        except Exception as error:
            _tell_failure(row[0], error)

    def _generate(self, rows: Sequence[tuple[Job, Tensor, int]]) -> None:
        limits = [limit for _, _, limit in rows]
        answers = [_Growing(job, prompt, limit, TextPieces(self.llm), self.metrics) for job, prompt, limit in rows]

        def take(row: int, token: int) -> bool:
            return answers[row].add(token)

        generate_rows(self.llm, [prompt for _, prompt, _ in rows], limits, take)


@dataclass
class _Growing:
    """An answer on its way, which tells its job what there is of it."""

    job: Job
    prompt: Tensor
    limit: int
    pieces: TextPieces
    metrics: Metrics

    def add(self, token: int) -> bool:
        llm, ids = self.pieces.llm, self.pieces.ids
        if self.job.left:
            return False
        if not self.job.streams:
            ids.append(token)
        elif piece := self.pieces.add(token):
            self.job.tell(piece)
        if (stops := token in llm.chat.stop_ids) or len(ids) >= self.limit:
            if self.job.streams and (piece := self.pieces.rest()):
                self.job.tell(piece)
            self.metrics.generated.inc(len(ids))
            self.metrics.read.inc(len(self.prompt))
            reason: Literal["stop", "length"] = "stop" if stops else "length"
            self.job.tell(Done(str(llm.text_of(ids)), reason, len(self.prompt), len(ids)))
        return True


def _tell_failure(job: Job, error: Exception) -> None:
    refusal = refusal_of(error)
    if refusal.status >= 500:
        log.error("a request failed: %s: %s", type(error).__name__, error)
        log.debug("where it failed", exc_info=error)
    job.tell(refusal)


def _clip(part: Placeholder) -> Path | None:
    return part.key.clip if isinstance(part.key, SpeechPlaceholder) else None
