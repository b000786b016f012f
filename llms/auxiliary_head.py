"""The auxiliary dual-level classification head (ADCH) of PE-FT: category, and attribute value within it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sottovoce.errors import ConfigError, nearest


class HeadLoss(NamedTuple):
    """Cross-entropies in nats, (), summed over rows: of the category, and of the value within the true category."""

    category: Tensor
    attribute: Tensor
    rows: int
    right: Tensor  # how many rows' attribute value is the likeliest


class AuxiliaryHead(nn.Module):
    """Linear heads on the mean of the audio positions' hidden states (Yang et al., 2026, section 5).

    A row's attribute head is that of its true category: all attribute heads are one linear map, of whose outputs those
    of other categories are masked. The heads serve training and are not part of the trained model.

    Args:
        dim: of the hidden states.
        categories: category -> its attribute values.
    """

    owner: Tensor  # (values,), the category of each

    def __init__(self, dim: int, categories: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.categories = {name: list(values) for name, values in categories.items()}
        self.names = list(self.categories)
        self.values = [(name, value) for name, values in self.categories.items() for value in values]
        self.category = nn.Linear(dim, len(self.names))
        self.attribute = nn.Linear(dim, len(self.values))
        owner = torch.tensor([self.names.index(name) for name, _ in self.values])
        self.register_buffer("owner", owner, persistent=False)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, dim) to logits of categories (rows, categories) and of all attribute values (rows, values)."""
        states = states.to(self.category.weight.dtype)
        return self.category(states), self.attribute(states)

    def loss(self, states: Tensor, truth: Sequence[tuple[str, str]]) -> HeadLoss:
        """Cross-entropies of states (rows, dim), given the true (category, value) of each; `ConfigError` if unknown."""
        values = torch.tensor([self._number(*pair) for pair in truth], device=states.device)
        categories = self.owner[values]
        by_category, by_value = self(states)
        foreign = self.owner[None] != categories[:, None]
        routed = by_value.masked_fill(foreign, float("-inf"))
        return HeadLoss(
            F.cross_entropy(by_category.float(), categories, reduction="sum"),
            F.cross_entropy(routed.float(), values, reduction="sum"),
            len(truth),
            (routed.argmax(1) == values).sum(),
        )

    def _number(self, category: str, value: str) -> int:
        key = "auxiliary_head.categories"
        if category not in self.categories:
            raise ConfigError.at(key, "unknown-name", f"category {category!r}.{nearest(category, self.names)}")
        if value not in (known := self.categories[category]):
            raise ConfigError.at(f"{key}.{category}", "unknown-name", f"value {value!r}.{nearest(value, known)}")
        return self.values.index((category, value))
