"""A real Prometheus that reads some addresses every second, and what it answers."""

from __future__ import annotations

import http
import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.ports import free_port
from support.programs import need


@contextmanager
def prometheus_of(targets: Sequence[str], folder: Path) -> Iterator[str]:
    """Its address; it reads /metrics of the targets, HOST:PORT each. The test is skipped where there is none."""
    program, port = need("prometheus"), free_port()
    jobs = {"job_name": "ray", "scrape_interval": "1s", "scrape_timeout": "1s"}
    config = {"scrape_configs": [jobs | {"static_configs": [{"targets": list(targets)}]}]}
    (folder / "config.yml").write_text(json.dumps(config))  # which is YAML
    command = [program, f"--config.file={folder}/config.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def values(prometheus: str, query: str) -> list[float]:
    """What a query gives now; none while Prometheus starts."""
    address = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return [float(series["value"][1]) for series in json.load(answer)["data"]["result"]]
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:  # it listens before it is ready
            return []
        raise AssertionError(f"{query}: {error.read().decode()}") from None
    except OSError:
        return []
