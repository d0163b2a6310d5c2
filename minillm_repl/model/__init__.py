"""The models: sizes, layers, cache and hooks."""
