"""What the tests of stages share."""

import pytest

from tandem_workers.models.model_set import resolve_models


@pytest.fixture(scope="module")
def models(tiny_models):
    return resolve_models(tiny_models["drafter"], tiny_models["refiner"], tiny_models["vqvae"], False)
