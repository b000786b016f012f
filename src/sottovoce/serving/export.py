"""`sottovoce export`: a run's weights in the format of the checkpoint it began with, which transformers opens."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
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
_NEGLIGIBLE = 1e-3  # part of a LoRA that float32 loses at most
_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "target_parameters", "fan_in_fan_out", "bias")
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")


def command(
    bundle: str, out: str, overrides: Sequence[str], dtype: str | None = None, lora: bool = False,
    format: str = "native",
) -> None:  # fmt: skip
    """The command; see `export` and `export_lora`, `plain.export_plain` and `graphs.export_graphs`."""
    check_free(Path(out))  # before the model is loaded
    if format != "native" and (lora or dtype):
        raise ConfigError.at("--format", "conflict", f"--lora and --dtype do not go with {format}: leave them out")
    module = read_bundle(bundle, overrides)
    if format != "native" and module.compressed:
        where, why = f"slots.{module.compressed[0]}.ctc_compression", "what is a blank is decided while it runs"
        raise ConfigError.at(where, "conflict", f"{why}: --format {format} has no code for that")
    if format == "plain":
        lines = resolve_name("sottovoce.serving.plain:export_plain")(module, Path(out))
    elif format != "native":
        lines = resolve_name("sottovoce.serving.graphs:export_graphs")(module, Path(out), format)
    else:
        lines = [export_lora(module, Path(out))] if lora else export(module, Path(out), dtype)
    for line in lines:
        print(line)


def export(module: SpeechLLM, folder: Path, dtype: str | None = None) -> list[str]:
    """Write a run's weights in its checkpoint's own format, LoRA merged; a line on that, and on each part left out.

    A finished audio LLM is written whole: LLM, and tower and projector where the run's encoder and adapter are its
    own; whatever else its files hold (pictures, a talker) is copied, and every tensor keeps the dtype it has there.
    Of other models the LLM is written, in the dtype of the run. `dtype` is for all tensors, instead: in bfloat16 most
    of a small LoRA may be rounded away, which a line tells. Tokenizer and settings come along.

    Raises:
        SottovoceError: `folder` holds something, the run's checkpoint cannot be reached, or has no place for a weight.
    """
    check_free(folder)
    source = HUB.snapshot(module.recipe.llm.checkpoint, _FILES)
    as_told: torch.dtype | None = getattr(torch, dtype) if dtype else None
    written_in = as_told or (_dtype_of(source) if is_composite(source) else module.llm.dtype)
    text, placed = merged(module.llm.model, written_in), {"llm"}
    if as_told:
        text = {name: weight.to(as_told) if weight.is_floating_point() else weight for name, weight in text.items()}
    with atomic_folder(folder) as draft:
        if is_composite(source):
            placed |= _write_audio_llm(module, text, source, draft, as_told)
        else:
            module.llm.model.save_pretrained(draft, state_dict=text)
            (draft / "generation_config.json").unlink(missing_ok=True)  # ours is greedy; the checkpoint's is copied
        _copy_settings(source, draft)
        if as_told:
            _set_dtype(draft / "config.json", as_told)
    parts = ["llm", "encoder", *(f"adapters.{name}" for name in module.adapters)]
    written = f"{folder}: {', '.join(part for part in parts if part in placed)}, as {source} has them"
    absent = "left out, since this format has no place for it: {} (it stays in the bundle)"
    lost = rounded_away(module.llm.model, written_in)
    told = f"in {_name(written_in)} {100 * lost:.2g} % of the LoRA is rounded away (relative norm); --dtype float32 "
    rounding = [f"{told}keeps all of it, --lora writes it apart"] * (lost > _NEGLIGIBLE)
    return [written, *rounding, *(absent.format(part) for part in parts if part not in placed)]


def export_lora(module: SpeechLLM, folder: Path) -> str:
    """Write a run's LoRA alone, as a folder that `peft.PeftModel.from_pretrained(llm, folder)` opens; a line on that.

    Raises:
        SottovoceError: `folder` holds something, the run has no LoRA, or its LLM is a part of an audio LLM.
    """
    from peft import LoraConfig

    check_free(folder)
    checkpoint, model = module.recipe.llm.checkpoint, module.llm.model
    configs = getattr(model, "peft_config", {})
    if not configs or is_composite(HUB.snapshot(checkpoint, SETTINGS)):
        why = f"{checkpoint} is a whole audio LLM, whose parts have other names" if configs else "the run has no LoRA"
        raise ConfigError.at("--lora", "conflict", f"{why}: leave it out")
    ((adapter, config),) = configs.items()
    lora = {name: weight for name, weight in model.state_dict().items() if base_name(name) is None}
    named = {f"base_model.model.{name.replace(f'.{adapter}.', '.')}": weight for name, weight in lora.items()}
    with atomic_folder(folder) as draft:
        save_file(
            {name: weight.cpu().contiguous() for name, weight in named.items()}, draft / "adapter_model.safetensors"
        )
        own = {field: getattr(config, field) for field in _LORA}
        LoraConfig(**own, base_model_name_or_path=checkpoint, task_type="CAUSAL_LM").save_pretrained(str(draft))
    return f"{folder}: the LoRA of {checkpoint}, {sum(weight.numel() for weight in lora.values()):,} weights"


def merged(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """An LLM's weights by the names that it has without LoRA, with LoRA's maps added in float32, to copies.

    Those copies are in `dtype`, or in that of each.
    """
    updates = {name: update for name, _, update in _updates(model)}
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if (base := base_name(name)) is not None:
            if name in updates:
                weight = (weight.float() + updates[name]).to(dtype or weight.dtype)
            weights[base] = weight.detach()
    return weights


def rounded_away(model: nn.Module, dtype: torch.dtype) -> float:
    """Which part of a LoRA is lost where it is merged in `dtype`: the norm of the error over that of the update."""
    lost = all_of_it = 0.0
    for _, weight, update in _updates(model):
        error = (weight.float() + update).to(dtype).float() - weight.float() - update
        lost, all_of_it = lost + float(error.square().sum()), all_of_it + float(update.square().sum())
    return math.sqrt(lost / all_of_it) if all_of_it else 0.0


def _updates(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, weight and what LoRA adds to it in float32, of each weight that has a LoRA."""
    lora: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    wrapper: Any = ParamWrapper
    owners = {id(one.get_param() if isinstance(one, wrapper) else one.base_layer.weight): one for one in lora}
    for name, weight in model.named_parameters():
        if (owner := owners.get(id(weight))) is not None:
            with torch.no_grad():
                deltas = [owner.get_delta_weight(adapter).float() for adapter in owner.active_adapters]
                yield name, weight.detach(), sum(deltas[1:], start=deltas[0])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype_of(source: Path) -> torch.dtype:
    """In which a checkpoint's files have their weights: the first of the LLM's."""
    with safe_open(next(iter(shards(source))), "pt") as shard:
        dtype: torch.dtype = shard.get_tensor(next(iter(shard.keys()))).dtype
    return dtype


def _set_dtype(file: Path, dtype: torch.dtype) -> None:
    """Have a config.json say in which dtype the weights are, as transformers then loads them."""
    config = json.loads(file.read_text("utf-8"))
    for node in (config, *(part for part in config.values() if isinstance(part, dict))):
        node.update(dict.fromkeys({"dtype", "torch_dtype"} & node.keys(), _name(dtype)))
    file.write_text(json.dumps({**config, "dtype": _name(dtype)}, indent=2) + "\n", "utf-8")


def check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        told = "there is something already; name a folder that is new or empty"
        raise ConfigError(f"--out {folder}: {told}", code="conflict", where=folder)


def _write_audio_llm(
    module: SpeechLLM, text: dict[str, Tensor], source: Path, draft: Path, dtype: torch.dtype | None
) -> set[str]:
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
            tensors = {name: _replacement(name, shard.get_tensor(name), ours, dtype) for name in shard.keys()}
        written = draft / file.relative_to(source)
        written.parent.mkdir(exist_ok=True)
        save_file(tensors, written, metadata={"format": "pt"})
    if layout.tower_folder:
        _copy_settings(source / layout.tower_folder, draft / layout.tower_folder)
    if ours:
        message = f"{source} has no place for {len(ours)} weights of this run, such as {next(iter(ours))}"
        raise SottovoceError(message, code="mismatch", where=next(iter(ours)))
    return set(parts)


def _replacement(name: str, theirs: Tensor, ours: dict[str, Tensor], dtype: torch.dtype | None) -> Tensor:
    """Our tensor of this name, which is taken out of `ours`, or theirs where we have none."""
    kept = dtype if dtype and theirs.is_floating_point() else theirs.dtype
    if name not in ours:
        return theirs.to(kept)
    mine = ours.pop(name).detach().to("cpu", kept)
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
        if isinstance(adapter, CheckpointProjector | KimiAudioProjector)
        and _same(adapter.checkpoint, checkpoint)
        and module.slot_layers[name] == (encoder.depth,)  # another layer, or a mix, has no place there
        and not module.recipe.slots[name].layer_norm
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
