"""The embedded toy world, second edition: things on a board that slide one cell a move, one move a latent frame."""
