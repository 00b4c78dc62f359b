"""The oracle of the synthetic images."""

import pytest

from cvae.evaluation.oracle import Oracle
from tests.science.evaluation.synthetic import TRAIN, VALIDATION


@pytest.fixture(scope="session")
def trained_oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(TRAIN, VALIDATION, 3, tmp_path_factory.mktemp("oracle"))
