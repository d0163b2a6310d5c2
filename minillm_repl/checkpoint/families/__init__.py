"""Model families of Hugging Face: their configs, and the names of their tensors."""
