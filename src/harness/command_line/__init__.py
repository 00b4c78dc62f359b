"""Entry points of the scripts: command line, Hydra callbacks and short error messages."""
