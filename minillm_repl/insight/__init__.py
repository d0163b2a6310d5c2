"""Looks inside a model: pure functions of a model and a text, each of which returns a frozen
view.
"""
