"""A causal LM behind one face: it is given a dialogue with slots, and answers or says how likely an answer is."""

from undertone.rooms import one_copy

one_copy(__name__)


from undertone.llms.causal import CausalLLM, TokenLoss
from undertone.llms.chat import ChatFormat, ChatTurn, Piece, Placeholder, Segment

__all__ = ["CausalLLM", "ChatFormat", "ChatTurn", "Piece", "Placeholder", "Segment", "TokenLoss"]
