"""Tests of the science, the harness and the project."""

PACKAGE = "cvae"  # the science: the package of src/ that users edit
