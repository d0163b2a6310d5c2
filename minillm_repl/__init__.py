"""A terminal in which you can talk to a small language model, train it, and watch every number
it thinks with.
"""

__version__ = "0.1.0"
