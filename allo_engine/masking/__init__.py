"""Which weights are trained: importance, exact selection, masks, and masked entries as the parameters."""
