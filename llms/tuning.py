"""Selective tuning of an LLM: LoRA on, or the weights of, the linear maps of some of its layers.

PE-FT (Yang et al., 2026, section 5) trains LoRA on layers 0 to 14 of 28 and leaves everything else as it is.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from sottovoce.errors import ConfigError, nearest
from sottovoce.llms.tuning_config import ALL, Tuning, layer_ranges

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: "PreTrainedModel") -> nn.ModuleList:
    """The decoder layers of a causal LM, in their order; `ConfigError` where there is not one such list."""
    count = model.config.get_text_config().num_hidden_layers
    parts = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    lists = {name: part for name, part in parts.items() if len(part) == count}
    if len(lists) != 1:
        why = f"{type(model).__name__} has {len(lists)} lists of {count} layers ({', '.join(lists) or 'none'}), "
        why += "so its decoder layers are not known; take another architecture"
        raise ConfigError.at("llm.tuning", "mismatch", why)
    return next(iter(lists.values()))


def layer_numbers(layers: str, count: int) -> list[int]:
    """The numbers that `0-14`, `0-6,9` or `all` stand for, of an LLM of `count` layers; or `ConfigError`."""
    if layers.strip() == ALL:
        return list(range(count))
    numbers: set[int] = set()
    for first, last in layer_ranges(layers):
        if not first <= last < count:
            why = f"{first}-{last} is not there; the LLM has layers 0-{count - 1}"
            raise ConfigError.at("llm.tuning.layers", "bad-value", why)
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def target_names(model: "PreTrainedModel", layers: str, targets: Sequence[str]) -> list[str]:
    """Full names of the linear maps that `layers` and `targets` select, in the model's order, or `ConfigError`."""
    stack = decoder_layers(model)
    chosen = {id(stack[number]) for number in layer_numbers(layers, len(stack))}
    maps = {
        (name, inner): f"{name}.{inner}"
        for name, layer in model.named_modules()
        if id(layer) in chosen
        for inner, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    within = sorted({inner for _, inner in maps})
    wanted = within if list(targets) == [ALL] else [name for target in targets for name in _matching(target, within)]
    return [full for (_, inner), full in maps.items() if inner in wanted]


def _matching(target: str, within: Sequence[str]) -> list[str]:
    names = [name for name in within if name == target or name.endswith(f".{target}")]
    if not names:
        known = nearest(target, {name.rsplit(".", 1)[-1] for name in within})
        why = f"no linear map of these layers is called {target!r}.{known}"
        raise ConfigError.at("llm.tuning.targets", "unknown-name", why)
    return names


def tune(model: "PreTrainedModel", tuning: Tuning) -> list[str]:
    """Add LoRA maps, or choose weights, in place; returns the names of the weights that are to train.

    New LoRA maps change no output: the second starts at 0, the first is drawn from torch's global generator. Errors as
    in `target_names`.
    """
    if tuning.method == "frozen":
        return []
    names = target_names(model, tuning.layers, tuning.targets)
    if tuning.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call, operator]
    if tuning.method == "weights":
        wanted = tuple(f"{name}." for name in names)
        return [name for name, _ in model.named_parameters() if name.startswith(wanted)]
    from peft import LoraConfig, inject_adapter_in_model  # late: it brings transformers' models along
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        r=tuning.rank, lora_alpha=tuning.alpha, lora_dropout=tuning.dropout, target_modules=names, bias="none"  # type: ignore[arg-type]
    )  # fmt: skip
    inject_adapter_in_model(config, model)
    wrapped = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if wrapped != set(names):
        why = f"peft wrapped {len(wrapped)} linear maps where {len(names)} were meant"
        raise ConfigError.at("llm.tuning", "mismatch", why)
    for name, weight in model.named_parameters():
        if _is_lora(name):
            weight.data = weight.data.float()  # in bfloat16, small steps would be rounded away
    return [name for name, _ in model.named_parameters() if _is_lora(name)]


def _is_lora(name: str) -> bool:
    return ".lora_" in name


def base_name(name: str) -> str | None:
    """The name of a weight in the LLM's checkpoint; None for LoRA's own."""
    return None if _is_lora(name) else name.replace(".base_layer.", ".")


def lora_layers(modules: Iterable[nn.Module]) -> list[Any]:
    """The linear maps with LoRA (`peft.tuners.lora.LoraLayer`)."""
    from peft.tuners.lora import LoraLayer

    return [module for module in modules if isinstance(module, LoraLayer)]
