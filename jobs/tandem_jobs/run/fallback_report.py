"""Replicas that did not run as asked, counted for the summary and the closing table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tandem_workers.dataset.fallbacks import Fallback
from tandem_workers.stages.ray_data import Span

MAX_NAMED = 6  # replicas in a line


def summarise_fallbacks(fallbacks: Collection[Fallback], spans: Sequence[Span]) -> list[dict[str, Any]]:
    """One entry for each stage and reason: the replicas that fell back, and how many worked in the stage.

    The part of a reason in parentheses, such as the missing bytes, differs between replicas: the first one is shown.
    """
    groups: dict[tuple[str, str], list[Fallback]] = {}
    for fallback in fallbacks:
        groups.setdefault((fallback.stage, fallback.reason.partition(" (")[0]), []).append(fallback)
    summary = []
    for (stage, _), mine in groups.items():
        replicas = sorted({fallback.replica for fallback in mine})
        worked = {span.replica for span in spans if span.stage == stage}
        summary.append(
            {"stage": stage, "reason": mine[0].reason, "replicas": replicas, "of": len(worked.union(replicas))}
        )
    return summary


def describe_fallback(found: Mapping[str, Any]) -> str:
    """One entry of `summarise_fallbacks` as a line."""
    names = found["replicas"]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    shown = " ".join(names[:MAX_NAMED]) + more
    return f"{found['stage']}: {len(names)} of {found['of']} replicas fell back ({shown}): {found['reason']}"
