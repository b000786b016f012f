"""Causal LMs: chat templates with speech slots, loss, generation, and engines that answer text."""

from typing import TYPE_CHECKING

from sottovoce.registry import Registry, lazy_attributes

if TYPE_CHECKING:
    from sottovoce.llms.causal_lm import CausalLLM
    from sottovoce.llms.chat_template import ChatTurn, Placeholder
    from sottovoce.llms.engines import Cut, Engine, Failure

ENGINES: "Registry[Engine]" = Registry(
    "engine", {"local": "sottovoce.llms.engines", "openai": "sottovoce.llms.openai_engine"}
)
__all__ = ["ENGINES", "CausalLLM", "ChatTurn", "Cut", "Engine", "Failure", "Placeholder"]
_MODULES = {"CausalLLM": "causal_lm", "ChatTurn": "chat_template", "Placeholder": "chat_template"}
__getattr__ = lazy_attributes(__name__, {**_MODULES, **dict.fromkeys(("Cut", "Engine", "Failure"), "engines")})
