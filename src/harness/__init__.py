"""Configs, run folders, training, resume and sweeps; see docs/design/harness.md."""
