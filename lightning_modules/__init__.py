"""The composition: SpeechLLM, the curriculum and its regularisation, the commands."""
