"""Conversations: templates, prompts that fit the context, and loss masks."""
