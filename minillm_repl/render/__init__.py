"""Draws events and tables with rich; never runs a model."""
