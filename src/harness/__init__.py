"""Configs, run folders, training, resume and sweeps for LightningModules; see docs/harness.md."""
