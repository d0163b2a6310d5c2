"""Checkpoints on disk: read strictly, written atomically."""
