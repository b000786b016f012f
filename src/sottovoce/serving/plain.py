"""`sottovoce export --format plain`: a folder that PyTorch and transformers open alone, with a loader of its own."""

import importlib.util
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sottovoce.adapters.base import Adapter, stack_frames
from sottovoce.adapters.layer_mix import PACE, LayerMix
from sottovoce.adapters.pooled_soft_prompt import PooledSoftPrompt, masked_adaptive_mean
from sottovoce.adapters.qformer import QFormer, QueryingTransformer
from sottovoce.adapters.windowed_qformer import WindowedQFormer
from sottovoce.encoders.whisper import HUB_PREFIX, PUBLISHED, SAMPLES_PER_FRAME, WhisperEncoder
from sottovoce.encoders.whisper_hub import hub_name
from sottovoce.errors import ConfigError, SottovoceError
from sottovoce.frames import Frames
from sottovoce.io import atomic_folder
from sottovoce.lightning_modules.bundle import make_readable
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import Placeholder
from sottovoce.llms.hub_checkpoints import HUB, SETTINGS, is_composite
from sottovoce.paths import is_local, resolve
from sottovoce.serving import export as native
from sottovoce.serving import plain_loader
from sottovoce.serving.chat import spoken_turn
from sottovoce.serving.graphs import TOLERANCE, test_waves
from sottovoce.serving.questions import default_task, learned_tasks, question
from sottovoce.training.slot_layers import MIX
from sottovoce.training.spoken_prompt import SpeechPlaceholder

LAYOUT, LOADER, ADAPTER_WEIGHTS = "model.json", "loader.py", "adapters.safetensors"
_MARK = "# Sottovoce's own classes"  # in the loader's file: what is behind it is replaced
_HEAD = """# Sottovoce's own classes, as they are.
import math  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from typing import Annotated, NamedTuple, cast  # noqa: E402

import torch.nn.functional as F  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402
"""
_USES: dict[type, tuple[Any, ...]] = {  # what else an adapter's source names
    PooledSoftPrompt: (masked_adaptive_mean,),
    QFormer: (QueryingTransformer,),
    WindowedQFormer: (QueryingTransformer,),
}


def export_plain(module: SpeechLLM, folder: Path) -> list[str]:
    """Write the folder, and check that its loader's embeddings are ours to 1e-4; a line on what was written.

    A frozen encoder or LLM of the hub is named there; others are saved, in transformers' format.

    Raises:
        ConfigError: a part has no form that transformers knows.
        SottovoceError: `folder` holds something, or the loader's embeddings differ.
    """
    native.check_free(folder)
    check_plain(module)
    with atomic_folder(folder) as draft:
        layout: dict[str, Any] = {
            "name": module.recipe.name,
            "encoder": _write_encoder(module, draft),
            "llm": _write_llm(module, draft),
            "slots": {name: _slot(module, name) for name in module.slots},
            "prompts": prompts(module),
        }
        weights = {name: value.detach().cpu().contiguous() for name, value in module.adapters.state_dict().items()}
        save_file(weights, draft / ADAPTER_WEIGHTS)
        (draft / LAYOUT).write_text(json.dumps(layout, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (draft / LOADER).write_text(loader_source(module), "utf-8")
        make_readable(draft)
        apart = difference(module, draft)
        if not apart <= TOLERANCE:
            raise SottovoceError(
                f"{folder}: its embeddings differ by {apart:.2g} from ours", code="mismatch", where=LOADER
            )
    kept = [f"{part} {layout[part]['checkpoint']}" for part in ("encoder", "llm")]
    return [
        f"{folder}: {', '.join(kept)}, adapters of {', '.join(module.slots)}; {LOADER} opens it (within {apart:.1g})"
    ]


def check_plain(module: SpeechLLM) -> None:
    """`ConfigError` for what transformers has no form of, or for which the loader has no code."""
    encoder = module.encoder
    if not isinstance(encoder, WhisperEncoder):
        why = f"{module.recipe.encoder['type']}: the loader knows Whisper alone; --format pt2 or onnx has no loader"
        raise ConfigError.at("encoder.type", "conflict", why)
    if encoder.window != "full" or encoder.dtype == "bfloat16":
        raise ConfigError.at("encoder.window", "conflict", "transformers' Whisper reads full windows, in float32 alone")
    if encoder.samples % encoder.sample_rate:
        why = "transformers' Whisper has windows of whole seconds"
        raise ConfigError.at("encoder.checkpoint", "conflict", why)
    if is_composite(HUB.snapshot(module.recipe.llm.checkpoint, SETTINGS)):
        raise ConfigError.at(
            "llm.checkpoint", "conflict", "it is a whole audio LLM: leave --format out, and it is written"
        )
    if module.recipe.llm.quantization:
        raise ConfigError.at("llm.quantization", "conflict", "the loader has whole weights, which answer otherwise")
    for name, adapter in module.adapters.items():
        if not type(adapter).__module__.startswith("sottovoce.adapters.") or getattr(adapter, "pretrained", False):
            kind = module.recipe.slots[name].adapter["type"]
            why = f"the loader cannot have {kind}, which is not of Sottovoce's own adapters: take --format pt2"
            raise ConfigError.at(f"slots.{name}.adapter", "conflict", why)


def prompts(module: SpeechLLM) -> dict[str, list[str | list[int]]]:
    """Task -> its prompt: token ids, and slots by name where their embeddings go; first what is asked by default."""
    recipe, made = module.recipe, {}
    for task in dict.fromkeys([default_task(recipe), *learned_tasks(recipe)]):
        asked = spoken_turn(module, Path("clip"), question(recipe, task, None).instruction, module.slots)
        parts: list[str | list[int]] = []
        for part in module.llm.chat.prompt(asked):
            if isinstance(part, Placeholder):
                assert isinstance(part.key, SpeechPlaceholder)
                parts.append(part.key.slot)
            else:
                parts.append(part)
        made[task] = parts
    return made


def loader_source(module: SpeechLLM) -> str:
    """The loader's text: `plain_loader.py`, and the very classes of the adapters that this model has."""
    head = Path(plain_loader.__file__).read_text("utf-8").partition(_MARK)[0]
    kinds: list[type] = list(dict.fromkeys(type(adapter) for adapter in module.adapters.values()))
    classes: list[type] = [LayerMix, *kinds]
    needs: dict[Any, None] = dict.fromkeys(
        [Frames, stack_frames, *(part for kind in kinds for part in _USES.get(kind, ())), *classes]
    )
    parts = [inspect.getsource(part) for part in needs]
    names = ", ".join(f'"{kind.__name__}": {kind.__name__}' for kind in classes)
    small = "def init_small(last: nn.Linear) -> nn.Linear:\n    return last\n"
    known = f"PACE = {PACE}\nCount, Share, Field = int, float, dict\n"
    return "\n\n".join([head + _HEAD + known + "\n\n" + small, *parts, f"CLASSES = {{{names}}}\n"])


def difference(module: SpeechLLM, folder: Path) -> float:
    """The largest between an embedding that the folder's own loader makes and ours, over clips of several lengths."""
    spec = importlib.util.spec_from_file_location("sottovoce_exported_loader", folder / LOADER)
    assert spec is not None and spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    made = loader.SpeechModel(folder)
    return max(_apart(module, wave, made.tokens(wave)) for wave in test_waves(module.encoder))


@torch.no_grad()
def _apart(module: SpeechLLM, wave: Tensor, theirs: dict[str, Tensor]) -> float:
    batch = Frames.pad([wave]).to(module.device)
    with module.encoder.in_float32():  # as the loader is
        frames = module.encoder.layer_frames(batch.x, batch.lengths, module.layers)
    ours = {name: module.adapt(name, frames).rows()[0].cpu() for name in module.slots}
    if any(ours[name].shape != theirs[name].shape for name in ours):
        return float("inf")
    return max(float((ours[name] - theirs[name]).abs().max()) if ours[name].numel() else 0.0 for name in ours)


def _slot(module: SpeechLLM, name: str) -> dict[str, Any]:
    adapter = module.adapters[name]
    assert isinstance(adapter, Adapter)
    node, mix = module.recipe.slots[name], getattr(adapter, MIX, None)
    columns = [module.layers.index(layer) for layer in module.slot_layers[name]]
    return {
        "class": type(adapter).__name__,
        "d_audio": module.encoder.dim,
        "d_llm": module.llm.dim,
        "knobs": {key: value for key, value in node.adapter.items() if key != "type"},
        "layer_mix": {"columns": columns, "normalize": node.layer_norm} if mix is not None else None,
    }


def _write_encoder(module: SpeechLLM, draft: Path) -> dict[str, Any]:
    """Where the encoder is, and what it hears; saved where it is trained, or is not on the hub."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Theirs

    encoder = module.encoder
    assert isinstance(encoder, WhisperEncoder)
    dims, checkpoint = encoder.dims, encoder.checkpoint
    known = HUB_PREFIX + checkpoint if checkpoint in PUBLISHED else checkpoint
    if module.owns_encoder or (checkpoint not in PUBLISHED and not _of_hub(checkpoint)):
        known = "./encoder"
        config = WhisperConfig(
            num_mel_bins=dims.n_mels, max_source_positions=dims.n_audio_ctx, d_model=dims.n_audio_state,
            encoder_attention_heads=dims.n_audio_head, encoder_layers=dims.n_audio_layer,
            encoder_ffn_dim=4 * dims.n_audio_state,
        )  # fmt: skip
        make: Any = Theirs
        theirs = make(config)
        theirs.load_state_dict(dict(_hub_weights(encoder.loaded_network())))
        theirs.save_pretrained(draft / "encoder")
    return {
        "checkpoint": known, "mels": dims.n_mels, "window_frames": encoder.samples // SAMPLES_PER_FRAME,
        "layers": list(module.layers),
    }  # fmt: skip


def _hub_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in network.state_dict().items():
        yield hub_name(name), weight.detach().cpu().contiguous()


def _write_llm(module: SpeechLLM, draft: Path) -> dict[str, Any]:
    """Where the LLM is; saved where it is tuned, or is not on the hub."""
    checkpoint, known = module.recipe.llm.checkpoint, "./llm"
    if not module.llm.trainable_names and _of_hub(checkpoint):
        known = checkpoint
    else:
        native.export(module, draft / "llm")
    return {"checkpoint": known, "dtype": module.recipe.llm.dtype, "stop_ids": sorted(module.llm.chat.stop_ids)}


def _of_hub(checkpoint: str) -> bool:
    return not is_local(checkpoint) and not checkpoint.startswith("sottovoce:") and not resolve(checkpoint).exists()
