"""Fixtures for the tests of the evaluation."""

from jaxtyping import install_import_hook

# before anything of it is imported
install_import_hook(["cvae.evaluation"], "tests.shapes.typechecker")

import pytest  # noqa: E402

from cvae.evaluation.oracle import Oracle  # noqa: E402
from tests.science.evaluation.known import TRAIN, VALIDATION  # noqa: E402


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(TRAIN, VALIDATION, 3, tmp_path_factory.mktemp("oracle"))
