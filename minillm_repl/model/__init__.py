"""The models: sizes, layers, cache and taps."""
