"""A causal LM behind one face: it is given a dialogue with slots, and answers or says how likely an answer is."""

from undertone.rooms import one_copy

one_copy(__name__)


from undertone.llms import openai_engine  # noqa: F401  (registers it)
from undertone.llms.causal import CausalLLM, TokenLoss
from undertone.llms.chat import ChatFormat, ChatTurn, Piece, Placeholder, Segment
from undertone.llms.engines import ENGINES, Cut, Engine, Failure

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
