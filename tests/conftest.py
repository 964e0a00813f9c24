"""What several test files share: one Ray cluster for the whole session, and tiny models on disk."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tiny_models import save_tiny_models


@pytest.fixture(scope="session")
def ray_cluster(aws_variables: None) -> Iterator[None]:
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
    """A SeaweedFS server on loopback; the value is its endpoint."""
    folder = tmp_path_factory.mktemp("s3")
    credential = {
        "accessKey": s3_environment["AWS_ACCESS_KEY_ID"],
        "secretKey": s3_environment["AWS_SECRET_ACCESS_KEY"],
    }
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [{"name": "test", "credentials": [credential], "actions": actions}]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    endpoint = s3_environment["AWS_ENDPOINT_URL"]
    names = [f"{part}.port{kind}" for part in ("master", "filer", "volume") for kind in ("", ".grpc")]
    ports = {name: str(free_port()) for name in names}
    options = {
        "dir": str(folder),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.port": endpoint.rsplit(":", 1)[1],
        "s3.config": str(folder / "s3.json"),
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        **ports,
    }
    weed = Path(sys.executable).with_name("weed")
    command = [str(weed), "mini", *(f"-{name}={value}" for name, value in options.items())]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for_s3(server, folder / "log")
        yield endpoint
    finally:
        server.terminate()
        server.wait(timeout=20)


def wait_for_s3(server: subprocess.Popen, log: Path) -> None:
    client = boto3.client("s3", config=Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=5))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the S3 server ended: {log.read_text()[-2000:]}"
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="probe", Body=b"x")
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
    raise AssertionError(f"the S3 server did not answer: {log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
