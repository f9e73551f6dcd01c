"""Shared pieces of the tests of reinforcement learning."""
