"""`sottovoce export`: a run's weights in the format of the checkpoint it began with, which transformers opens."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sottovoce.adapters.checkpoint_projector import CheckpointProjector
from sottovoce.adapters.kimi_audio_projector import KimiAudioProjector
from sottovoce.audio_llm_layouts import CAUSAL_LM, LAYOUTS, Layout, read_config, shards
from sottovoce.encoders.qwen_audio import AudioTower
from sottovoce.errors import ConfigError, SottovoceError
from sottovoce.hub import WEIGHTS
from sottovoce.io import atomic_folder
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.hub_checkpoints import HUB, SETTINGS, is_composite, text_config
from sottovoce.llms.tuning import base_name
from sottovoce.paths import resolve

_FILES = (*SETTINGS, "*.pt", *WEIGHTS)  # of a checkpoint on the hub; Omni has its speakers in a .pt
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")


def command(bundle: str, out: str, overrides: Sequence[str]) -> None:
    """The command; see `export`."""
    _check_free(Path(out))  # before the model is loaded
    for line in export(read_bundle(Path(bundle), overrides), Path(out)):
        print(line)


def export(module: SpeechLLM, folder: Path) -> list[str]:
    """Write a run's weights in its checkpoint's own format, LoRA merged; a line on that, and on each part left out.

    A finished audio LLM is written whole: LLM, and tower and projector where the run's encoder and adapter are its
    own; whatever else its files hold (pictures, a talker) is copied, and every tensor keeps the dtype it has there.
    Of other models the LLM is written, in the dtype of the run. Tokenizer and settings come along.

    Raises:
        SottovoceError: `folder` holds something, the run's checkpoint cannot be reached, or has no place for a weight.
    """
    _check_free(folder)
    source = HUB.snapshot(module.recipe.llm.checkpoint, _FILES)
    text, placed = merged(module.llm.model), {"llm"}
    with atomic_folder(folder) as draft:
        if is_composite(source):
            placed |= _write_audio_llm(module, text, source, draft)
        else:
            module.llm.model.save_pretrained(draft, state_dict=text)
            (draft / "generation_config.json").unlink(missing_ok=True)  # ours is greedy; the checkpoint's is copied
        _copy_settings(source, draft)
    parts = ["llm", "encoder", *(f"adapters.{name}" for name in module.adapters)]
    written = f"{folder}: {', '.join(part for part in parts if part in placed)}, as {source} has them"
    absent = "left out, since this format has no place for it: {} (it stays in the bundle)"
    return [written, *(absent.format(part) for part in parts if part not in placed)]


def merged(model: nn.Module) -> dict[str, Tensor]:
    """An LLM's weights by the names that it has without LoRA, with LoRA's maps added in float32, to copies."""
    lora = ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
    owners: dict[str, Any] = {f"{name}.base_layer.weight": module for name, module in lora}  # of whatever kind of map
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if name in owners:
            deltas = [owners[name].get_delta_weight(adapter).float() for adapter in owners[name].active_adapters]
            weight = sum(deltas, start=weight.float()).to(weight.dtype)
        if (base := base_name(name)) is not None:
            weights[base] = weight.detach()
    return weights


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        told = "there is something already; name a folder that is new or empty"
        raise ConfigError(f"--out {folder}: {told}", code="conflict", where=folder)


def _write_audio_llm(module: SpeechLLM, text: dict[str, Tensor], source: Path, draft: Path) -> set[str]:
    """Copy every file of weights, with our tensors in the places of the checkpoint's; the parts that have a place."""
    config = read_config(source, HUB)
    layout = LAYOUTS[config.model_type]
    if text_config(config).tie_word_embeddings:  # one tensor, kept under the name of the embeddings
        text = {name: weight for name, weight in text.items() if not name.startswith("lm_head.")}
    parts = dict(_native_parts(module))
    ours = _checkpoint_names(text, layout) | {name: weight for part in parts.values() for name, weight in part.items()}
    folders = dict.fromkeys((source, source / layout.tower_folder))  # one, where the tower has none of its own
    for file in (file for folder in folders for file in shards(folder)):
        with safe_open(file, "pt") as shard:
            tensors = {name: _replacement(name, shard.get_tensor(name), ours) for name in shard.keys()}
        written = draft / file.relative_to(source)
        written.parent.mkdir(exist_ok=True)
        save_file(tensors, written, metadata={"format": "pt"})
    if layout.tower_folder:
        _copy_settings(source / layout.tower_folder, draft / layout.tower_folder)
    if ours:
        message = f"{source} has no place for {len(ours)} weights of this run, such as {next(iter(ours))}"
        raise SottovoceError(message, code="mismatch", where=next(iter(ours)))
    return set(parts)


def _replacement(name: str, theirs: Tensor, ours: dict[str, Tensor]) -> Tensor:
    """Our tensor of this name, which is taken out of `ours`, or theirs where we have none."""
    if name not in ours:
        return theirs
    mine = ours.pop(name).detach().to("cpu", theirs.dtype)
    if mine.shape != theirs.shape:
        message = f"{name} is {tuple(mine.shape)} in this run, and {tuple(theirs.shape)} in its checkpoint"
        raise SottovoceError(message, code="mismatch", where=name)
    return mine.contiguous()


def _checkpoint_names(text: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The LLM's weights, named as in the checkpoint's files."""
    return {layout.text + name: weight for name, weight in text.items() if name.startswith(CAUSAL_LM)}


def _native_parts(module: SpeechLLM) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Of the run's other parts, those that this checkpoint has a place for, named as in its files."""
    encoder, checkpoint = module.encoder, module.recipe.llm.checkpoint
    if isinstance(encoder, AudioTower) and _same(encoder.checkpoint, checkpoint):
        yield "encoder", encoder.native_weights()
    projectors = {
        f"adapters.{name}": adapter
        for name, adapter in module.adapters.items()
        if isinstance(adapter, CheckpointProjector | KimiAudioProjector) and _same(adapter.checkpoint, checkpoint)
    }
    if len(projectors) == 1:
        for name, adapter in projectors.items():
            yield name, adapter.native_weights()


def _same(one: str, other: str) -> bool:
    return one == other or (resolve(one).is_dir() and resolve(one).resolve() == resolve(other).resolve())


def _copy_settings(source: Path, draft: Path) -> None:
    """Whatever is no weight and not written yet; an index of weights only where its files have their names still."""
    for file in sorted(source.iterdir()):
        stale = file.name.endswith(".index.json") and not _index_holds(file, draft)
        if file.is_file() and file.suffix not in _OTHER_WEIGHTS and not stale and not (draft / file.name).exists():
            shutil.copyfile(file, draft / file.name)


def _index_holds(index: Path, draft: Path) -> bool:
    return all((draft / name).is_file() for name in set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
