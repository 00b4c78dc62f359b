"""Tracking of runs with Weights & Biases, in addition to the run folder."""
