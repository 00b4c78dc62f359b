"""Sweeps: parallel jobs on this machine, and hyperparameter search with Optuna."""
