"""Comparison of runs: tables, plots, and a saved view on Weights & Biases."""
