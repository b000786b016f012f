"""Layer-wise analyses of a bundle's LLM, and diagnoses of runs."""
