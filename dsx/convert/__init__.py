"""Weights in and out of other layouts."""
