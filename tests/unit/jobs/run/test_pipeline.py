"""Where stages are made, and the operators that Ray Data gets of them; without a cluster."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import ray.data

import tandem_jobs
from tandem_cluster.placement import Placement
from tandem_jobs.bench.bench_pipeline import Consume, Rows, Simulated
from tandem_jobs.run.pipeline import Pipeline, generate_pools
from tandem_workers.dataset.shards import ShardPlan

STAGES = {"ReadLabels", "ReadDrafts", "Drafter", "Refiner"}


class Operators:
    """In place of a Ray Dataset: names of the operators, and of the stages of each."""

    def __init__(self) -> None:
        self.found: list[tuple[str, list[str]]] = []

    def map_batches(self, operator: Any, fn_constructor_args: Any = (None, ()), **_: Any) -> Operators:
        self.found.append((operator.__name__, [stage.name for stage in fn_constructor_args[1]]))
        return self

    def iter_internal_ref_bundles(self) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Placement("split", 2, 1, ""), [("draft", ["read", "draft"]), ("refine", ["refine"])]),
        (Placement("mixed", 1, 1, "", num_both=1), [("draft", ["read", "draft"]), ("refine", ["refine"])]),
        (Placement("colocated", 2, 2, ""), [("draft + refine", ["read", "draft", "refine"])]),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_operators_have_the_names_of_their_pools_and_run_the_stages_in_order(monkeypatch, placement, expected):
    """Process titles, metrics and Ray's views show these names."""
    operators, plan = Operators(), ShardPlan(4, 2)
    monkeypatch.setattr(ray.data, "from_items", lambda shards, **_: operators)
    draft, refine = (Simulated(name, 0.0, 0.0, 2, 5, 16) for name in ("draft", "refine"))
    pipeline = Pipeline(plan, generate_pools(placement, [Rows(plan), draft], refine), Consume(), 1, 1)
    assert list(pipeline.run([0, 1], pipeline.flow(2))) == []
    assert operators.found == [*expected, ("write_shard", [])]


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_stages_are_made_where_a_job_names_its_pipeline():
    """Called there, and not handed on to be called elsewhere."""
    made: dict[str, set[str]] = {}
    for path in Path(tandem_jobs.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "pipeline"]
        there = [call.func for function in functions for call in calls(function)]
        used = {node for call in calls(tree) for node in ast.walk(call) if getattr(node, "id", "") in STAGES}
        assert used <= set(there), path
        if used:
            made[path.stem] = {node.id for node in used}
    assert made == {
        "generate": {"ReadLabels", "Drafter", "Refiner"},
        "draft": {"ReadLabels", "Drafter"},
        "refine": {"ReadDrafts", "Refiner"},
    }
