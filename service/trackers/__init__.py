"""Telling MLflow, Weights & Biases and trackio of jobs, through their own libraries, in processes of their own."""
