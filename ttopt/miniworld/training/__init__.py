"""Training of the shipped models on the sprite world. Run with ``python -m ttopt.miniworld.train``."""
