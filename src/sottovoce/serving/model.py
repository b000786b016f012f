"""A bundle in Python: `load` gives a `Model`, which answers audio, streams, and returns tokens and probabilities."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from sottovoce.data.examples import Batch
from sottovoce.data.tasks import AttributeTask, Task
from sottovoce.device import device_of
from sottovoce.errors import ConfigError, SottovoceError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import ChatTurn
from sottovoce.llms.streaming import stream
from sottovoce.llms.vllm_server import VLLMServer, hand_over
from sottovoce.serving.audio_input import Audio, is_batch, waveform
from sottovoce.serving.chat import Conversation, spoken_turn
from sottovoce.serving.questions import chosen_slots, learned_tasks, question

log = logging.getLogger(__name__)
Engine = Literal["local", "vllm"]
Slots = str | Sequence[str]
MAX_NEW_TOKENS, BATCH_SIZE = 200, 8


def load(
    bundle: str | Path, device: str | torch.device | None = None, overrides: Sequence[str] = (), *,
    trust_remote_code: bool = False, engine: Engine = "local", url: str | None = None, served_model: str | None = None,
    key_env: str | None = None,
) -> "Model":  # fmt: skip
    """Load a bundle, or the bundle of a run's folder, with the frozen parts that it was trained with.

    Args:
        bundle: folder, such as `runs/quickstart/bundle` or `runs/quickstart`.
        device: such as `cpu`, `cuda` or `cuda:1`; the first GPU if there is one.
        overrides: of its recipe, such as `llm.checkpoint=/path` where a frozen part lies elsewhere now.
        trust_remote_code: run Python code that comes with the LLM's checkpoint.
        engine: `local`, or `vllm`: the LLM runs in a vLLM server, see `llms.vllm_server`.
        url: of that server, such as `http://localhost:8000/v1`.
        served_model: as that server calls it, where it has several.
        key_env: the environment variable of that server's key.

    Raises:
        BundleError: a file is missing or damaged, or a frozen part is another one than in training.
        MissingError: a frozen part cannot be reached.
        ConfigError: there is no such device, or an override cannot be.
    """
    target = device_of(device)  # before the weights are read
    if engine not in get_args(Engine) or (engine == "vllm") != (url is not None):
        raise ConfigError.at("url", "conflict", "the engine vllm needs a server's url, and local has none")
    trusted = ["llm.trust_remote_code=true"] if trust_remote_code else []
    module = read_bundle(bundle, [*overrides, *trusted])
    if url is not None:
        server = VLLMServer(url, module.llm.chat.stop_ids, model=served_model, key_env=key_env)
        for notice in hand_over(module.llm, server):
            log.warning("%s", notice)
    return Model(module.to(target))


class Answer(str):
    """An answer in words; `label` is the choice that it names, None for none, several, or a task without choices."""

    label: str | None

    def __new__(cls, text: str, label: str | None = None) -> "Answer":
        answer = super().__new__(cls, text)
        answer.label = label
        return answer


class Model:
    """A trained bundle that answers audio; see `load`.

    A clip is a file's name or Path (any format, rate and number of channels), or an array or tensor (samples,) with
    `sample_rate`, or a mapping with `array` and `sampling_rate`. A list of clips is answered as a list, in batches.

    Attributes:
        module: the LightningModule: `encoder`, `adapters` by slot, `llm`.
        tasks: what the bundle was trained on.
        slots: names of its slots, in the order of a spoken turn.
        sample_rate: what the encoder hears, Hz; clips are resampled.
    """

    def __init__(self, module: SpeechLLM) -> None:
        self.module = module.eval()
        self.recipe = module.recipe
        self.tasks, self.slots = tuple(learned_tasks(module.recipe)), tuple(module.slots)
        self.sample_rate = module.encoder.sample_rate

    def __repr__(self) -> str:
        return f"Model({self.recipe.name!r}, tasks={list(self.tasks)}, slots={list(self.slots)}, device={self.device})"

    @property
    def device(self) -> torch.device:
        """Where it answers."""
        return self.module.device

    def to(self, device: str | torch.device) -> "Model":
        """Move it to another device."""
        self.module.to(device_of(device))
        return self

    @overload
    def __call__(  # type: ignore[overload-overlap]  # text is a sequence, too: the first is meant
        self, audio: Audio, task: str | None = ..., *, ask: str | None = ..., slots: Slots = ...,
        sample_rate: int | None = ..., max_new_tokens: int = ..., batch_size: int = ...,
    ) -> Answer: ...  # fmt: skip
    @overload
    def __call__(
        self, audio: Sequence[Audio], task: str | None = ..., *, ask: str | None = ..., slots: Slots = ...,
        sample_rate: int | None = ..., max_new_tokens: int = ..., batch_size: int = ...,
    ) -> list[Answer]: ...  # fmt: skip
    def __call__(
        self, audio: Audio | Sequence[Audio], task: str | None = None, *, ask: str | None = None, slots: Slots = "both",
        sample_rate: int | None = None, max_new_tokens: int = MAX_NEW_TOKENS, batch_size: int = BATCH_SIZE,
    ) -> Answer | list[Answer]:  # fmt: skip
        """Answer a clip, or a list of clips.

        Args:
            audio: one or several, see the class.
            task: whose first wording is asked, such as `age`; a reply, or the bundle's only task, if absent.
            ask: a question in words, in place of a task.
            slots: which take speech: `both` (all), one's name, or several; the others stay empty.
            sample_rate: of arrays and tensors, Hz.
            max_new_tokens: of an answer, at most.
            batch_size: clips that are answered together.

        Raises:
            AudioError: a clip cannot be used.
            ConfigError: there is no such task or slot.
            SottovoceError: a clip is more than the LLM reads.
        """
        waves = self._waves(audio, sample_rate)
        (instruction, known), chosen = question(self.recipe, task, ask), chosen_slots(slots, self.slots)
        texts = [""] * len(waves)
        for rows in _batches(waves, batch_size):
            batch, chats = self._spoken([waves[row] for row in rows], instruction, chosen)
            for row, text in zip(rows, self.module.generate(batch, chats, max_new_tokens), strict=True):
                texts[row] = text
        answers = [Answer(text, known.parse(text) if known else None) for text in texts]
        return answers if is_batch(audio) else answers[0]

    def stream(
        self, audio: Audio, task: str | None = None, *, ask: str | None = None, slots: Slots = "both",
        sample_rate: int | None = None, max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> Iterator[str]:  # fmt: skip
        """The answer to one clip in pieces, as they come; joined they are what the call returns. Arguments as there."""
        (instruction, _), chosen = question(self.recipe, task, ask), chosen_slots(slots, self.slots)
        batch, chats = self._spoken([waveform(audio, self.sample_rate, sample_rate)], instruction, chosen)
        with torch.no_grad():
            prompt = self.module.embed(batch, chats)[0]
        return stream(self.module.llm, prompt, max_new_tokens)

    @overload
    def tokens(  # type: ignore[overload-overlap]
        self, audio: Audio, *, sample_rate: int | None = ..., batch_size: int = ...
    ) -> dict[str, Tensor]: ...
    @overload
    def tokens(
        self, audio: Sequence[Audio], *, sample_rate: int | None = ..., batch_size: int = ...
    ) -> list[dict[str, Tensor]]: ...
    @torch.no_grad()
    def tokens(
        self, audio: Audio | Sequence[Audio], *, sample_rate: int | None = None, batch_size: int = BATCH_SIZE
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """The speech embeddings that the LLM is given in place of words: slot -> (tokens, llm_dim), without gradient.

        Without the marks that a slot may have around them. Errors as in the call.
        """
        waves = self._waves(audio, sample_rate)
        found: list[dict[str, Tensor]] = [{} for _ in waves]
        for rows in _batches(waves, batch_size):
            batch = Frames.pad([waves[row] for row in rows]).to(self.device)
            frames = self.module.encoder.layer_frames(batch.x, batch.lengths, self.module.layers)
            for slot in self.slots:
                for row, tokens in zip(rows, self.module.adapt(slot, frames).rows(), strict=True):
                    found[row][slot] = tokens
        return found if is_batch(audio) else found[0]

    @overload
    def probabilities(  # type: ignore[overload-overlap]
        self, audio: Audio, task: str | None = ..., *, ask: str | None = ..., choices: Sequence[str] | None = ...,
        slots: Slots = ..., sample_rate: int | None = ..., batch_size: int = ...,
    ) -> dict[str, float]: ...  # fmt: skip
    @overload
    def probabilities(
        self, audio: Sequence[Audio], task: str | None = ..., *, ask: str | None = ...,
        choices: Sequence[str] | None = ..., slots: Slots = ..., sample_rate: int | None = ..., batch_size: int = ...,
    ) -> list[dict[str, float]]: ...  # fmt: skip
    def probabilities(
        self, audio: Audio | Sequence[Audio], task: str | None = None, *, ask: str | None = None,
        choices: Sequence[str] | None = None, slots: Slots = "both", sample_rate: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> dict[str, float] | list[dict[str, float]]:  # fmt: skip
        """Label -> probability, for each choice of an attribute; they add up to 1.

        The likelihood of every label's whole answer ("The speaker is a child." and the end of the turn), over the sum
        of all. Since each ends, a label that begins another, or has more tokens, has no advantage by that.

        Args:
            audio: one clip or several.
            task: an attribute of the bundle.
            ask: a question of one's own, which needs `choices`.
            choices: answers to choose from, as the LLM would say them, in place of the task's.
            slots: as in the call.
            sample_rate: as in the call.
            batch_size: clips that are encoded together, and answers that are scored together.

        Raises:
            ConfigError: the task has no choices, or a question comes without.
            AudioError: a clip cannot be used.
        """
        waves = self._waves(audio, sample_rate)
        (instruction, known), chosen = question(self.recipe, task, ask), chosen_slots(slots, self.slots)
        answers = _choices(known, choices)
        if self.module.llm.remote is not None:
            raise ConfigError.at("engine", "unavailable", "probabilities need the LLM here: engine='local'")
        found: list[dict[str, float]] = [{} for _ in waves]
        for rows in _batches(waves, batch_size):
            batch, chats = self._spoken([waves[row] for row in rows], instruction, chosen)
            for row, shares in zip(rows, self._shares(batch, chats, list(answers.values()), batch_size), strict=True):
                found[row] = dict(zip(answers, shares, strict=True))
        return found if is_batch(audio) else found[0]

    @torch.no_grad()
    def _shares(
        self, batch: Batch, chats: list[list[ChatTurn]], answers: list[str], batch_size: int
    ) -> list[list[float]]:
        llm = self.module.llm
        responses = [[llm.chat.response(chat, answer) for answer in answers] for chat in chats]
        prompts = self.module.embed(batch, chats)
        pairs = [(p, r) for p, each in zip(prompts, responses, strict=True) for r in each]
        nll: list[Tensor] = []
        for start in range(0, len(pairs), batch_size):
            part = pairs[start : start + batch_size]
            nll.append(llm.loss([prompt for prompt, _ in part], [reply for _, reply in part]).per_row)
        scores = torch.cat(nll).double().reshape(len(chats), len(answers))
        return [[float(share) for share in row] for row in (-scores).softmax(1)]

    def conversation(
        self, task: str | None = None, *, ask: str | None = None, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Conversation:
        """A dialogue of several turns, spoken and written: `answer_audio(clip)` and `answer_text(words)`."""
        return Conversation(self.module, question(self.recipe, task, ask).instruction, max_new_tokens)

    def _waves(self, audio: Audio | Sequence[Audio], sample_rate: int | None) -> list[Tensor]:
        clips = list(audio) if is_batch(audio) else [audio]
        return [waveform(clip, self.sample_rate, sample_rate) for clip in clips]  # type: ignore[arg-type]

    def _spoken(
        self, waves: list[Tensor], instruction: str, slots: Sequence[str]
    ) -> tuple[Batch, list[list[ChatTurn]]]:
        """A batch of clips, and for each the prompt that asks about it."""
        clips = {Path(f"clip-{row}"): row for row in range(len(waves))}
        chats = [spoken_turn(self.module, clip, instruction, slots) for clip in clips]
        return Batch([], clips, Frames.pad(waves)).to(self.device), chats


def _batches(waves: Sequence[Tensor], size: int) -> list[list[int]]:
    """Row numbers of clips of like length, so many together."""
    if size < 1:
        raise SottovoceError(f"batch_size must be at least 1, got {size}", code="bad-value", where="batch_size")
    order = sorted(range(len(waves)), key=lambda row: len(waves[row]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _choices(task: Task | None, choices: Sequence[str] | None) -> dict[str, str]:
    """Label -> the answer that names it."""
    if choices is not None:
        if len(set(choices)) < max(2, len(choices)) or isinstance(choices, str):
            raise ConfigError.at("choices", "bad-value", f"two or more different answers, got {choices!r}")
        return {choice: choice for choice in choices}
    if not isinstance(task, AttributeTask):
        what = f"task {task.name!r} has no labels" if task else "a question of one's own has no labels"
        raise ConfigError.at("choices", "missing-key", f"{what}: name the answers, choices=[...]")
    return {label: task.answer(label) for label in task.choices}
