"""The session, the commands' registry, the loop, and the prompt line."""
