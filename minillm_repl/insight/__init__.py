"""Looks inside a model: pure functions of a model and a text, each returning a frozen view."""
