"""Pooled features of clips, for probes: every layer of the encoder, what each slot hears of it, and its tokens."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from sottovoce.adapters import Adapter
from sottovoce.data.audio import load_audio
from sottovoce.frames import Frames
from sottovoce.lightning_modules.run import Run
from sottovoce.progress import Progress
from sottovoce.scoring.speech_tokens import mean_over_time
from sottovoce.tensor_files import read_metadata, read_tensors, write_tensors

Array = NDArray[np.float32]
CLIPS = 8  # at once, since all layers are kept
MOST_FLAT = 8192  # numbers of a prompt of fixed length, beyond which it is pooled like any other
VERSION = 1  # of what is kept on disk


@dataclass
class PooledFeatures:
    """Rows are clips, in the order asked for; `rows` says which row a clip is. Each array is (clips, numbers)."""

    rows: dict[Path, int]
    layers: dict[int, Array]  # of the encoder: mean and deviation over time
    heard: dict[str, Array]  # slot -> mean and deviation of what it hears: one layer, or the mix that it has learned
    tokens: dict[str, Array]  # slot -> its tokens, flat where there are always as many, else mean and deviation
    nearest: dict[str, list[list[int]]]  # slot -> of each clip, the input embedding of the LLM nearest to each token


def mean_and_deviation(frames: Frames) -> Tensor:
    """Of the real frames: (batch, frames, dim) to (batch, 2 * dim)."""
    x = frames.x.float()
    mean = mean_over_time(Frames(x, frames.lengths))
    square = mean_over_time(Frames((x - mean[:, None]) ** 2, frames.lengths))
    return torch.cat([mean, square.sqrt()], 1)


@torch.no_grad()
def read_features(run: Run, clips: Sequence[Path], file: Path, progress: Progress) -> PooledFeatures:
    """Features of clips that `encode_clips` has checked; layers are read from the cache where the run has one.

    Layers that no slot hears are computed, and kept in `file` for the same clips and encoder.
    """
    module = run.module.eval()
    others = [layer for layer in range(1, module.encoder.depth + 1) if layer not in module.layers]
    kept = _kept(run, clips, others, file)
    layers: dict[int, list[Tensor]] = {layer: [] for layer in (*module.layers, *(others if kept is None else ()))}
    slots: dict[str, tuple[list[Tensor], list[Tensor], list[list[int]]]] = {name: ([], [], []) for name in module.slots}
    for start in progress.track(range(0, len(clips), CLIPS), description="reading features", unit="batch"):
        part = clips[start : start + CLIPS]
        encoded = module.encoded(Frames.pad([run.audio_reader.read(clip) for clip in part]).to(module.device))
        columns = [(encoded, module.layers)]
        if others and kept is None:
            columns.append((_computed(run, part, others), tuple(others)))
        for frames, numbers in columns:
            for number, one in zip(numbers, frames.x.chunk(len(numbers), -1), strict=True):
                layers[number].append(mean_and_deviation(Frames(one, frames.lengths)).cpu())
        for name, (mixes, pooled, nearest) in slots.items():
            adapter = cast(Adapter, module.adapters[name])
            mix = module.heard(name, encoded)
            tokens: Frames = adapter(mix)
            mixes.append(mean_and_deviation(mix).cpu())
            pooled.append(_pooled_tokens(adapter, tokens).float().cpu())
            nearest += [_nearest(run, row) for row in tokens.rows()]
    found = {number: torch.cat(parts) for number, parts in layers.items()}
    if others and kept is None:
        own = {str(number): found[number] for number in others}
        write_tensors(file, own, {"key": _key(run, clips, others)})
    found |= kept or {}
    return PooledFeatures(
        {clip: row for row, clip in enumerate(clips)},
        {number: found[number].numpy() for number in sorted(found)},
        {name: torch.cat(mixes).numpy() for name, (mixes, _, _) in slots.items()},
        {name: torch.cat(pooled).numpy() for name, (_, pooled, _) in slots.items()},
        {name: nearest for name, (_, _, nearest) in slots.items()},
    )


def _pooled_tokens(adapter: Adapter, tokens: Frames) -> Tensor:
    fixed = adapter.output_length(10) == adapter.output_length(1000) == tokens.x.shape[1]
    if fixed and tokens.x[0].numel() <= MOST_FLAT:
        return tokens.x.flatten(1)
    return mean_and_deviation(tokens)


def _nearest(run: Run, tokens: Tensor) -> list[int]:
    """By cosine, of the LLM's input embeddings, for tokens (tokens, llm_dim)."""
    table: Any = run.module.llm.model.get_input_embeddings().weight
    likeness = F.normalize(tokens.float(), dim=-1) @ F.normalize(table.float(), dim=-1).T
    return [int(token) for token in likeness.argmax(-1)]


def _computed(run: Run, clips: Sequence[Path], layers: Sequence[int]) -> Frames:
    encoder, silent = run.module.encoder, run.audio_reader.silent
    sounds = [torch.from_numpy(load_audio(clip, encoder.sample_rate, silent=clip in silent)) for clip in clips]
    return encoder.layer_frames(*Frames.pad(sounds).to(run.module.device), layers)


def _key(run: Run, clips: Sequence[Path], layers: Sequence[int]) -> str:
    content = [VERSION, run.module.encoder.fingerprint(), list(layers), [run.audio_reader.keys[clip] for clip in clips]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _kept(run: Run, clips: Sequence[Path], layers: Sequence[int], file: Path) -> dict[int, Tensor] | None:
    with suppress(SafetensorError, OSError):
        if layers and read_metadata(file) == {"key": _key(run, clips, layers)}:
            return {int(name): tensor for name, tensor in read_tensors(file).items()}
    return None
