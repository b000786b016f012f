"""Hidden states of a SpeechLLM and of its encoder: one forward pass an utterance, cached for all analyses."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from sottovoce.data.audio import load_audio
from sottovoce.data.clip_reference import read_bytes, split_part
from sottovoce.data.examples import Batch, Example, Read, collate
from sottovoce.data.manifest import refuse
from sottovoce.frames import Frames
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.hidden_states import HiddenStates, read_hidden_states
from sottovoce.progress import Progress
from sottovoce.scoring.speech_tokens import mean_over_time
from sottovoce.tensor_files import read_metadata, read_tensors, write_tensors
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.spoken_prompt import dialogue_of, speech_positions

ENCODER, CLIPS = "encoder", 4  # of its states in a file; how many clips at once, since all layers are kept
VERSION = 1  # of what is cached: a new number makes old files anew


def batch_states(module: SpeechLLM, batch: Batch) -> HiddenStates:
    """States of the LLM for each example of a batch, averaged over all speech of its turn, none of its context."""
    prompts = [module.llm.chat.prompt(dialogue_of(example, module.slots)) for example in batch.examples]
    speech = module.speech_embeddings(batch, prompts)[0]
    inputs = [module.llm.embed(prompt, speech) for prompt in prompts]  # rows of (tokens, llm_dim)
    spans = [speech_positions(prompt, speech, e) for prompt, e in zip(prompts, batch.examples, strict=True)]
    return read_hidden_states(module.llm, inputs, spans)


@torch.no_grad()
def collect_states(
    module: SpeechLLM, examples: Sequence[Example], read: Read, batch_size: int, progress: Progress
) -> HiddenStates:
    """States of all examples, in their order; clips of like length go through the model together."""
    module.eval()
    order = sorted(range(len(examples)), key=lambda row: examples[row].utterance.seconds)
    batches = []
    for start in progress.track(range(0, len(order), batch_size), description="reading hidden states", unit="batch"):
        rows = [examples[row] for row in order[start : start + batch_size]]
        batches.append(batch_states(module, collate(rows, read).to(module.device)))
    back = torch.tensor(order).argsort()
    return HiddenStates(*(torch.cat(list(kind))[back] for kind in zip(*batches, strict=True)))


def states_key(model: dict[str, str], examples: Sequence[Example]) -> str:
    """A digest of all that states depend on: the model, and each example's clip and instruction."""
    digest = hashlib.sha256(json.dumps([VERSION, model], sort_keys=True).encode())
    for example in examples:
        recording, part = split_part(example.utterance.clip)
        clip = hashlib.sha256(read_bytes(recording)).hexdigest() + str(part)
        digest.update(json.dumps([clip, example.instruction, example.place, dict(example.sources)]).encode())
    return digest.hexdigest()


def cached_states(
    module: SpeechLLM, examples: list[Example], model: dict[str, str], file: Path, batch_size: int, progress: Progress
) -> HiddenStates:
    """The states of all examples: from the file if it was written for these, and into it otherwise."""
    key = states_key(model, examples)
    if (cached := load_states(file, key)) is not None:
        return cached
    reader = AudioReader(module.encoder, None, module.recipe.data.max_seconds)
    if faults := reader.prepare(module.encoder, [e.utterance.clip for e in examples], progress):
        refuse(f"{len(faults)} clips cannot be used:", faults)
    states = collect_states(module, examples, reader.read, batch_size, progress)
    save_states(file, key, states)
    return states


@torch.no_grad()
def cached_encoder_states(
    module: SpeechLLM, examples: Sequence[Example], model: dict[str, str], file: Path, progress: Progress
) -> Tensor:
    """The encoder's states for all clips, (clips, 1 + layers, dim), means over time; cached as `cached_states` are.

    The first one is the first layer's input. `ConfigError` where the encoder does not expose its layers.
    """
    key, encoder = states_key({"encoder": model["encoder"]}, examples), module.encoder
    with suppress(SafetensorError, OSError, KeyError):
        if read_metadata(file) == {"key": key}:
            return read_tensors(file)[ENCODER]
    encoder.eval()
    layers, device, means = range(encoder.depth + 1), next(encoder.parameters()).device, []
    for start in progress.track(range(0, len(examples), CLIPS), description="reading the encoder", unit="batch"):
        clips = [e.utterance.clip for e in examples[start : start + CLIPS]]
        heard = [torch.from_numpy(load_audio(clip, encoder.sample_rate)) for clip in clips]
        frames = encoder.layer_frames(*Frames.pad(heard).to(device), layers)
        means.append(mean_over_time(frames).reshape(len(clips), len(layers), -1).float().cpu())
    states = torch.cat(means)
    write_tensors(file, {ENCODER: states}, {"key": key})
    return states


def load_states(file: Path, key: str) -> HiddenStates | None:
    """States that `save_states` has written with this key; None if there are none, or damaged or other ones."""
    try:
        return HiddenStates(**read_tensors(file)) if read_metadata(file) == {"key": key} else None
    except (SafetensorError, OSError):
        return None


def save_states(file: Path, key: str, states: HiddenStates) -> None:
    write_tensors(file, states._asdict(), {"key": key})
