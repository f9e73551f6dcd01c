"""A road of many runs: its stages, their order, what each has come to."""
