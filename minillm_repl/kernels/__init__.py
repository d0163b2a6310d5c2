"""The C library: its sources, and how the fastest variant of it that runs here is found."""
