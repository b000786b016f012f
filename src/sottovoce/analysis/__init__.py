"""Layer-wise analyses of a bundle's LLM."""
