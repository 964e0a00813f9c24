"""The dashboard of jobs as Grafana's own library reads it. Its queries are asked in test_rendered_cluster.py."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARD = json.loads((Path(__file__).parents[2] / "cluster" / "grafana_jobs.json").read_text())


def test_grafanas_own_library_reads_it():
    dashboard = Dashboard.from_json(DASHBOARD)
    assert dashboard.uid == "tandem-jobs"
    assert all(panel.targets and panel.description for panel in dashboard.panels)
    cells = [(panel.grid_pos.x, panel.grid_pos.y) for panel in dashboard.panels]
    assert len(set(cells)) == len(cells) == len(DASHBOARD["panels"])
