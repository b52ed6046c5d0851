"""Responses of a model."""
