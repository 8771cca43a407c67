"""A toy world with a rule-based scorer, the embedded default task: things slide over a board, one cell a move."""
