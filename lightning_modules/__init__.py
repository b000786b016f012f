"""The composition: SpeechLLM, the curriculum and its regularisation, the commands."""

from undertone.rooms import one_copy

one_copy(__name__)
