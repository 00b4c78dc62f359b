"""Evaluation of a trained model: one file per claim. Claims do not import Lightning."""
