"""What a held-out file says of a model: a file a format. See stages/evaluate.py, which puts every model to it."""
