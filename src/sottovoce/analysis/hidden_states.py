"""The hidden states of a SpeechLLM that listens: one forward pass an utterance, kept for all analyses."""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from rich.progress import Progress
from safetensors import SafetensorError

from sottovoce.data.batches import Batch, Read, collate
from sottovoce.data.examples import Example
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.causal_lm import placeholder_spans
from sottovoce.llms.hidden_states import HiddenStates, read_hidden_states
from sottovoce.tensor_files import read_metadata, read_tensors, write_tensors
from sottovoce.training.spoken_prompt import SpeechPlaceholder, dialogue_of

VERSION = 1  # of what is kept: a new number makes old files anew


def states(module: SpeechLLM, batch: Batch) -> HiddenStates:
    """What the LLM makes of each example of a batch, averaged over the positions of its own spoken turn.

    All slots that hold speech count, also where there are several; speech of the context does not.
    """
    chats = [module.llm.chat.prompt(dialogue_of(example, module.slots)) for example in batch.examples]
    fills = module.speech_embeddings(batch, chats)[0]
    prompts = [module.llm.embed(chat, fills) for chat in chats]
    spans = [placeholder_spans(chat, fills) for chat in chats]
    heard = [_own(span, example.utterance.audio) for span, example in zip(spans, batch.examples, strict=True)]
    return read_hidden_states(module.llm, prompts, heard)


def _own(spans: Mapping[Hashable, range], clip: Path) -> list[int]:
    """The positions of one clip, in all slots."""
    own = [span for spot, span in spans.items() if isinstance(spot, SpeechPlaceholder) and spot.clip == clip]
    return [place for span in own for place in span]


@torch.no_grad()
def observe(module: SpeechLLM, examples: Sequence[Example], read: Read, batch: int, progress: Progress) -> HiddenStates:
    """The states of all examples, in their order; clips of like length go through the model together."""
    module.eval()
    order = sorted(range(len(examples)), key=lambda row: examples[row].utterance.seconds)
    seen = []
    for start in progress.track(range(0, len(order), batch), description="reading"):
        part = [examples[row] for row in order[start : start + batch]]
        seen.append(states(module, collate(part, read).to(module.device)))
    back = torch.tensor(order).argsort()
    pooled, ranks, tokens = (torch.cat(list(kind))[back] for kind in zip(*seen, strict=True))
    return HiddenStates(pooled, ranks, tokens)


def key_of(model: dict[str, str], examples: Sequence[Example]) -> str:
    """A digest of all that states depend on: the model, and of each example its clip's bytes and its instruction."""
    digest = hashlib.sha256(json.dumps([VERSION, model], sort_keys=True).encode())
    for example in examples:
        sound = hashlib.sha256(example.utterance.audio.read_bytes()).hexdigest()
        digest.update(json.dumps([sound, example.instruction, example.place, dict(example.sources)]).encode())
    return digest.hexdigest()


def kept(file: Path, key: str) -> HiddenStates | None:
    """What `keep` has written with this key; None if there is nothing, or of something else."""
    try:
        return HiddenStates(**read_tensors(file)) if read_metadata(file) == {"key": key} else None
    except (SafetensorError, OSError):
        return None


def keep(file: Path, key: str, inside: HiddenStates) -> None:
    """Write states, in float32; the file appears when it is whole."""
    write_tensors(file, inside._asdict(), {"key": key})
