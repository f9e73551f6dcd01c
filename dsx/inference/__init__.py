"""Turning a trained model into text."""
