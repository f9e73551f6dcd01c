"""Vocabulary, sources, preprocessing, packing and reading of data."""
