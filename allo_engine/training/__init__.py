"""The loop that every trained stage runs, its losses and its checkpoints."""
