"""A synthetic sprite world with a rule-based scorer: the embedded default task of ttopt."""
