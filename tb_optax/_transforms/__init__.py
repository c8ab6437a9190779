"""The gradient transformations."""
