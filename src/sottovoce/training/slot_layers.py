"""Layers of the encoder that each slot hears: their numbers, the mix that belongs to the adapter, and its weights."""

from collections.abc import Mapping

import torch
from torch import nn

from sottovoce.adapters import ADAPTERS, Adapter
from sottovoce.adapters.layer_mix import LayerMix
from sottovoce.config.recipe import Recipe
from sottovoce.device import check_fits
from sottovoce.encoders import Encoder
from sottovoce.encoders.layer_choice import LAST, chosen_layers
from sottovoce.errors import ConfigError, brief

MIX = "layer_mix"  # of an adapter, among its parts


def layers_of_slots(recipe: Recipe, encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """The layers that each slot hears, by number; `ConfigError` where the encoder has or shows no such layers."""
    heard = {}
    for name, slot in recipe.slots.items():
        where = f"slots.{name}.layers"
        if slot.layers != LAST and not encoder.depth:
            raise ConfigError.at(where, "conflict", f"{recipe.encoder['type']}: {encoder.hides_layers}")
        heard[name] = chosen_layers(slot.layers, encoder.depth, where)
    return heard


def add_layer_mix(adapter: Adapter, slot: tuple[int, ...], all_layers: tuple[int, ...], dim: int, norm: bool) -> None:
    """Give an adapter what picks or mixes its slot's layers out of all that are heard, unless that is all there is."""
    if slot != all_layers or len(slot) > 1 or norm:
        columns = [all_layers.index(layer) for layer in slot]
        adapter.add_module(MIX, LayerMix(columns, dim, normalize=norm))


def slot_adapters(
    recipe: Recipe, d_audio: int, d_llm: int, layers: Mapping[str, tuple[int, ...]]
) -> dict[str, Adapter]:
    """The adapter of each slot with its mix of `layers`, see `layers_of_slots`; `ConfigError` for one too large."""
    every = tuple(sorted({layer for chosen in layers.values() for layer in chosen}))
    return {name: _slot_adapter(recipe, name, (d_audio, d_llm), layers[name], every) for name in recipe.slots}


def _slot_adapter(
    recipe: Recipe, name: str, dims: tuple[int, int], layers: tuple[int, ...], all_layers: tuple[int, ...]
) -> Adapter:
    node, what = recipe.slots[name], f"slots.{name}.adapter"
    try:
        with torch.device("meta"):  # a number too many in a recipe is told before it fills the memory
            check_fits(ADAPTERS.build(node.adapter, *dims), what)
        adapter = ADAPTERS.build(node.adapter, *dims)
    except (RuntimeError, OverflowError) as error:  # how torch refuses shapes
        raise ConfigError.at(what, "bad-value", brief(error, 200)) from None
    add_layer_mix(adapter, layers, all_layers, dims[0], node.layer_norm)
    return adapter


def layer_weights(layers: Mapping[str, tuple[int, ...]], adapters: nn.ModuleDict) -> dict[str, dict[int, float]]:
    """The weight of each layer that a slot hears; in each slot they add up to 1."""
    mixes = {name: getattr(adapters[name], MIX, None) for name in layers}
    return {
        name: dict(zip(layers[name], mix.weights().tolist() if mix else [1.0], strict=True))
        for name, mix in mixes.items()
    }
