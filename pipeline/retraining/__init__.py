"""Generations: when one is due, whether it becomes the current model, and how to go back."""
