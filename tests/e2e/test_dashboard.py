"""The Grafana dashboard: Grafana's own library reads it, and a real Prometheus has an answer for every panel."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard

from support.prometheus import prometheus_of, values
from support.runs import wait_until
from support.served import Served

FILE = Path(__file__).parents[2] / "cluster" / "grafana_endpoint.json"
DASHBOARD = json.loads(FILE.read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def prometheus(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that reads the metrics of the server, as it tells where they are."""
    target = re.search(r"metrics for Prometheus: http://(\S+)/metrics", served.log.read_text())
    assert target, served.log.read_text()
    with prometheus_of([target[1]], tmp_path_factory.mktemp("prometheus")) as address:
        yield address


def test_grafanas_own_library_reads_it():
    dashboard = Dashboard.from_json(DASHBOARD)
    assert dashboard.uid == "tandem-endpoint"
    assert [panel.title for panel in dashboard.panels] == [panel["title"] for panel in DASHBOARD["panels"]]
    assert all(panel.targets and panel.description for panel in dashboard.panels)
    cells = [(panel.grid_pos.x, panel.grid_pos.y) for panel in dashboard.panels]
    assert len(set(cells)) == len(cells)


def test_every_panel_shows_a_value(served, prometheus):
    left = {title: expr.replace("$__rate_interval", "1m") for title, expr in QUERIES}
    assert len(left) == len(DASHBOARD["panels"])
    seed = iter(range(1000))

    def shown() -> bool:
        for n in (1, 3):
            status, _ = served.post(prompt="face", seed=next(seed), n=n)
            assert status == 200
        served.stream(prompt="face", seed=next(seed))
        for title, query in list(left.items()):
            if any(math.isfinite(value) for value in values(prometheus, query)):
                del left[title]
        return not left

    wait_until(shown, f"values for {left}", seconds=90)
