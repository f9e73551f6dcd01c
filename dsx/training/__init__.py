"""Schedules, optimizer, losses, state, step, checkpoints, metrics, loop."""
