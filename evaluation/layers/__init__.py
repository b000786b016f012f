"""Layer-wise analyses: probes, similarities, the split of layers, plots."""
