"""A trained bundle behind an OpenAI-compatible chat endpoint."""
