"""A model from its folder, rows of tokens, and the log-probabilities of a row's tokens."""
