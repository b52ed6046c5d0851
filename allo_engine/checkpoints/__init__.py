"""Folders of safetensors: read, written and changed piece by piece."""
