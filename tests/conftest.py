"""What several test files share: one Ray cluster for the whole session, and tiny models on disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.ports import free_port
from support.runs import Digests, digests, job
from support.s3_server import S3Server
from support.served import Served, serve
from support.sources import PYTHONPATH
from support.tiny_models import save_tiny_models
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store

# Files with tests of the server `served`: it has a fixed port, and starting it takes half a minute
WITH_SERVER = frozenset(
    f"test_{name}.py"
    for name in (
        "api_schema",
        "dashboard",
        "endpoint",
        "endpoint_colocated",
        "endpoint_edits",
        "page_served",
        "readme",
    )
)


def pytest_configure() -> None:
    """Tests interrupt processes. A shell that starts a command in the background has it ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Raise UsageError for a test of the server in a file that is not known for it."""
    for item in items:
        if "served" in getattr(item, "fixturenames", ()) and item.path.name not in WITH_SERVER:
            raise pytest.UsageError(f"expected {item.path.name} in WITH_SERVER of conftest.py, as it uses `served`")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile` a file stays in one process, and so do all files that share the server."""
    from xdist.scheduler import LoadFileScheduling

    class OneServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "served" if Path(file).name in WITH_SERVER else file

    return OneServer(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes a line with a figure, printed at the end of the run: xdist shows nothing that its processes print."""
    return partial(record_property, "measured")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests gave to `measured`."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [value for report in reports for name, value in report.user_properties if name == "measured"]
    if lines:
        terminalreporter.section("measured")
        terminalreporter.write("".join(f"{line}\n" for line in lines))


os.environ["PYTHONPATH"] = PYTHONPATH  # Ray's workers and other processes run this checkout


@pytest.fixture(scope="session")
def ray_cluster(aws_variables: None) -> Iterator[None]:
    """A local cluster with 4 logical CPUs and 4 simulated GPUs. Code that opens a session joins it."""
    from tandem_cluster.session import open_session

    with open_session(address=None, logical_gpus=4, min_cpus=4):
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a drafter, a refiner and a VQVAE of a few thousand weights."""
    return save_tiny_models(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def undisturbed(ray_cluster: None, tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Digests:
    """Hashes of the shards of `runs.job`, made here and without any fault."""
    from tandem_jobs.cli import main

    out = tmp_path_factory.mktemp("undisturbed") / "out"
    one = ("--placement", "colocated", "--drafters", "1")  # each takes seconds to start
    assert main(job(tiny_models, out, *one)) == 0
    return digests(out)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def store(out: str) -> Store:
    """An empty local store."""
    return open_store(out)


@pytest.fixture(scope="session")
def s3_environment() -> dict[str, str]:
    """Credentials and endpoint of the test server, as the standard AWS variables."""
    return {
        "AWS_ACCESS_KEY_ID": "tandem-test",
        "AWS_SECRET_ACCESS_KEY": "only-for-tests-5f1c",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
    }


@pytest.fixture(scope="session", autouse=True)
def aws_variables(s3_environment: dict[str, str]) -> Iterator[None]:
    """Set before Ray starts, so that its workers have them too; they never point to a real account."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in kept:
        del os.environ[name]
    os.environ.update(s3_environment)
    yield
    for name in s3_environment:
        os.environ.pop(name, None)
    os.environ.update(kept)


@pytest.fixture(scope="session")
def s3_server(s3_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS server; the value is its endpoint."""
    server = S3Server(tmp_path_factory.mktemp("s3"), s3_environment)
    server.start()
    yield s3_environment["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`tandem serve` with the embedded model: one drafter and one refiner on simulated GPUs, on the default port."""
    log = tmp_path_factory.mktemp("served") / "log"
    server = serve(log, "--placement", "split", "--drafters", "1", "--refiners", "1", port=8000)
    yield server
    assert server.stop() == 0, log.read_text()
