"""What of an LLM is unfrozen: LoRA on, or the weights of, the linear maps of some of its layers.

PE-FT (Yang et al., 2026, section 5) trains LoRA on layers 0 to 14 of 28 and leaves everything else as it is.
"""

from collections.abc import Iterable, Sequence

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from sottovoce.errors import ConfigError, nearest
from sottovoce.llms.tuning_config import ALL, Tuning, layer_ranges


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal LM, in their order.

    Raises:
        ConfigError: there is no such list, or more than one.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    if len(found) != 1:
        raise ConfigError(
            f"llm.tuning: {type(model).__name__} has {len(found)} lists of {count} layers "
            f"({', '.join(found) or 'none'}), so what a layer is cannot be told; take another architecture"
        )
    return next(iter(found.values()))


def layer_numbers(layers: str, count: int) -> list[int]:
    """The numbers that `0-14`, `0-6,9` or `all` stand for, of an LLM of `count` layers.

    Raises:
        ConfigError: it cannot be read, or names a layer that is not there; says which there are.
    """
    if layers.strip() == ALL:
        return list(range(count))
    numbers: set[int] = set()
    for first, last in layer_ranges(layers):
        if not first <= last < count:
            told = f"llm.tuning.layers: {first}-{last} is not there; the LLM has layers 0-{count - 1}"
            raise ConfigError(told, code="bad-value", where="llm.tuning.layers")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def target_names(model: PreTrainedModel, layers: str, targets: Sequence[str]) -> list[str]:
    """Exact names of the linear maps that are meant, in the order of the model.

    Raises:
        ConfigError: a range or a target matches nothing; says what there is.
    """
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
    wanted = within if list(targets) == [ALL] else [found for target in targets for found in _matching(target, within)]
    return [full for (_, inner), full in maps.items() if inner in wanted]


def _matching(target: str, within: Sequence[str]) -> list[str]:
    found = [name for name in within if name == target or name.endswith(f".{target}")]
    if not found:
        known = {name.rsplit(".", 1)[-1] for name in within}
        told = f"llm.tuning.targets: no linear map of these layers is called {target!r}.{nearest(target, known)}"
        raise ConfigError(told, code="unknown-name", where="llm.tuning.targets")
    return found


def tune(model: PreTrainedModel, tuning: Tuning) -> list[str]:
    """Unfreeze what is asked for, in place; returns the names of the weights that train, and of no others.

    New LoRA maps change nothing: the second starts at 0, the first is drawn from torch's global generator.

    Raises:
        ConfigError: something matches nothing.
    """
    if tuning.method == "frozen":
        return []
    names = target_names(model, tuning.layers, tuning.targets)
    if tuning.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call, operator]
    if tuning.method == "weights":
        wanted = tuple(f"{name}." for name in names)
        return [name for name, _ in model.named_parameters() if name.startswith(wanted)]
    config = LoraConfig(
        r=tuning.rank, lora_alpha=tuning.alpha, lora_dropout=tuning.dropout, target_modules=names, bias="none"  # type: ignore[arg-type]
    )  # fmt: skip
    inject_adapter_in_model(config, model)
    reached = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if reached != set(names):
        raise ConfigError(f"llm.tuning: peft reached {len(reached)} linear maps where {len(names)} were meant")
    for name, weight in model.named_parameters():
        if _is_lora(name):
            weight.data = weight.data.float()  # in bfloat16, steps as small as ours would be rounded away
    return [name for name, _ in model.named_parameters() if _is_lora(name)]


def _is_lora(name: str) -> bool:
    return ".lora_" in name


def base_name(name: str) -> str | None:
    """What a weight is called in the LLM's checkpoint; None for LoRA's own."""
    return None if _is_lora(name) else name.replace(".base_layer.", ".")


def lora_layers(modules: Iterable[nn.Module]) -> list[LoraLayer]:
    """The maps that LoRA stands beside."""
    return [module for module in modules if isinstance(module, LoraLayer)]
