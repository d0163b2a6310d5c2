"""A second process for work on untrusted data, which may hang, crash or grow."""
