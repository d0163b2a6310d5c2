"""File formats of checkpoints: our own, Hugging Face folders, adapters and bare state dicts."""
