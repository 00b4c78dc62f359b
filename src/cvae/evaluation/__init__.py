"""Evaluation of a trained model: one file per claim. Imports models, not Lightning."""
