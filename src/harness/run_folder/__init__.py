"""Run folders: config, summary, metrics and checkpoints, and safe loading of them."""
