"""Layers of the encoder that each slot hears: their numbers, the mix that belongs to the adapter, and its weights."""

from collections.abc import Mapping

from torch import nn

from sottovoce.adapters import Adapter
from sottovoce.adapters.layer_mix import LayerMix
from sottovoce.config.recipe import Recipe
from sottovoce.encoders import Encoder
from sottovoce.encoders.layer_choice import LAST, chosen_layers
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames

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


def heard(adapter: nn.Module, encoded: Frames) -> Frames:
    """Of the encoder's layers side by side, (clips, frames, layers * dim), what an adapter hears: (.., dim)."""
    mix = getattr(adapter, MIX, None)
    return encoded if mix is None else Frames(mix(encoded.x), encoded.lengths)


def layer_weights(layers: Mapping[str, tuple[int, ...]], adapters: nn.ModuleDict) -> dict[str, dict[int, float]]:
    """The weight of each layer that a slot hears; in each slot they add up to 1."""
    mixes = {name: getattr(adapters[name], MIX, None) for name in layers}
    return {
        name: dict(zip(layers[name], mix.weights().tolist() if mix else [1.0], strict=True))
        for name, mix in mixes.items()
    }
