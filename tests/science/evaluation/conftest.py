"""Shapes in the evaluation's signatures are checked during its tests."""

from jaxtyping import install_import_hook

# before any module of the evaluation is imported
install_import_hook(["cvae.evaluation"], "tests.shapes.typechecker")
