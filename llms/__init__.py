"""A causal LM behind one face: it is given a dialogue with slots, and answers or says how likely an answer is."""

from sottovoce.llms import openai_engine  # noqa: F401  (registers it)
from sottovoce.llms.causal_lm import CausalLLM, TokenLoss
from sottovoce.llms.chat_template import ChatFormat, ChatTurn, Piece, Placeholder, Segment
from sottovoce.llms.engines import ENGINES, Cut, Engine, Failure

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
