"""Clients that are generated from the OpenAPI document: they compile, and parse what the server sends.

Generators are installed from PyPI and npm into folders of their own; without these registries or Node the tests are
skipped.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.api_server import listening
from support.fake_engine import MODEL, FakeEngine, make_gateway
from tandem_workers.endpoint.keys import digest

KEY = "a-key-of-some-length"
GENERATOR = "openapi-python-client==0.29.1"
DATA = Path(__file__).parent.parent / "data" / "clients"
PREVIEW, COMPLETED = "image_generation.partial_image", "image_generation.completed"
PARSED = {
    "images": [base64.b64encode(f"4/5/{i}".encode()).decode() for i in range(2)],
    "class": "dog",
    "events": [[PREVIEW, 1], [PREVIEW, 3], [COMPLETED, "dog"]],
    "wrong": [400, "cfg"],
    "refused": [401, "invalid_api_key"],
    "models": [MODEL],
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(make_gateway(FakeEngine(), key_digests=(digest(KEY),))) as address:
        yield address


@pytest.fixture
def document(url, tmp_path) -> Path:
    file = tmp_path / "openapi.json"
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=60) as answer:
        file.write_bytes(answer.read())
    return file


def run(*command: Any, cwd: Path, **variables: str) -> str:
    """Standard output. Fails with all output if the command does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    line = list(map(str, command))
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def install(*command: Any, cwd: Path) -> None:
    """Skips the test if the command fails: there is no registry."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"{Path(command[0]).name} cannot install the generator: {done.stderr.strip()[-300:]}")


def test_a_python_client_parses_images_streams_and_errors(url, document, tmp_path):
    """In an environment of its own: the generator needs an older typer than the tests."""
    own = tmp_path / "venv"
    venv.create(own)
    python = own / "bin" / "python"
    install(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile", GENERATOR, cwd=tmp_path)
    made = ["--path", document, "--output-path", tmp_path / "tandem_client", "--meta", "none", "--fail-on-warning"]
    # the generator formats its files by ruff, which lies beside it
    path = f"{own / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run(own / "bin" / "openapi-python-client", "generate", *made, cwd=tmp_path, PATH=path)
    assert json.loads(run(python, DATA / "use.py", url, KEY, cwd=tmp_path, PYTHONPATH=str(tmp_path))) == PARSED


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="there is no Node here")
def test_typescript_types_compile_and_hold_for_what_is_sent(url, document, tmp_path):
    for file in DATA.iterdir():
        shutil.copy(file, tmp_path)
    quick = ("--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=30000")
    install("npm", "install", *quick, cwd=tmp_path)
    tools = tmp_path / "node_modules" / ".bin"
    optional = "--default-non-nullable=false"  # what has a default may be left out of a request
    run(tools / "openapi-typescript", document, optional, "-o", tmp_path / "schema.d.ts", cwd=tmp_path)
    run(tools / "tsc", cwd=tmp_path)
    assert json.loads(run("node", "out/use.js", url, KEY, cwd=tmp_path)) == PARSED
