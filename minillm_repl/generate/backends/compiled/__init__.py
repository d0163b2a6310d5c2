"""The decoder of all families, compiled by numba: no torch, weights as they lie in memory,
several threads.
"""
