"""The decoders behind one protocol: torch, CUDA graphs, compiled kernels."""
