"""The decoder of all families, compiled by numba: no torch, weights as they lie, many threads."""
