"""Scheduled retraining: generations and their calendar, the promotion gate, the registry of current models."""
