"""Layers and pure functions that methods share, one family a file."""
