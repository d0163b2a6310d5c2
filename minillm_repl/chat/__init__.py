"""Conversations: templates, which tokens are answers, and what fits the context."""
