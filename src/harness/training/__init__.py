"""Training of one run: processes, objects, signals, checkpoints and resume."""
