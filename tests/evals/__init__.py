"""Shared pieces of the tests of evaluation."""
