"""An aligned model in the forms that other programs read: GGUF, and a low-rank adapter. Each is read back when made."""
