"""GGUF files of llama.cpp: read strictly, and written."""
