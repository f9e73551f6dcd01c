"""dsx: DeepSeek-V3, DeepSeek-R1 and Janus-Pro in JAX, whole and readable."""
