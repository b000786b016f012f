"""Causal LMs: chat templates with speech slots, loss, generation, and engines that answer text."""

from typing import TYPE_CHECKING

from sottovoce.registry import Registry, lazy_attributes

if TYPE_CHECKING:
    from sottovoce.llms.causal_lm import CausalLLM, TokenLoss
    from sottovoce.llms.chat_template import ChatFormat, ChatTurn, Piece, Placeholder, Segment
    from sottovoce.llms.engines import Cut, Engine, Failure

ENGINES: "Registry[Engine]" = Registry(
    "engine", {"local": "sottovoce.llms.engines", "openai": "sottovoce.llms.openai_engine"}
)
__all__ = [
    "ENGINES",
    "CausalLLM",
    "ChatFormat",
    "ChatTurn",
    "Cut",
    "Engine",
    "Failure",
    "Piece",
    "Placeholder",
    "Segment",
    "TokenLoss",
]
__getattr__ = lazy_attributes(
    __name__,
    {
        **dict.fromkeys(("CausalLLM", "TokenLoss"), "causal_lm"),
        **dict.fromkeys(("ChatFormat", "ChatTurn", "Piece", "Placeholder", "Segment"), "chat_template"),
        **dict.fromkeys(("Cut", "Engine", "Failure"), "engines"),
    },
)
