"""What several test files share: one Ray cluster for the whole session, and tiny models on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import save_tiny_models


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with 8 logical CPUs and 4 simulated GPUs. Code that opens a session joins it."""
    from cluster.session import open_session

    with open_session(address=None, logical_gpus=4, min_cpus=8):
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a drafter, a refiner and a VQVAE of a few thousand weights."""
    return save_tiny_models(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")
