"""Text to token ids and back. Tokens are bytes; text appears only where a screen needs it."""
