"""The part of the harness that a science imports: base classes, sampling, seeds, errors, files."""
