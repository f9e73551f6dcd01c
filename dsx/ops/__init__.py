"""Parameter-free functions: the mathematics, one idea a file."""
