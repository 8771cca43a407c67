"""Algorithm 1: test-time optimization of one sample."""
