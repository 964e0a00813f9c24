"""The loop of a run: makes the missing shards, counts failed ones, and summarises the run in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ray.exceptions import RpcError

from tandem.errors import JobError
from tandem_cluster.session import num_unplaced, why_unplaced
from tandem_jobs.run.backpressure import Flow, StageState
from tandem_jobs.run.fallback_report import summarise_fallbacks
from tandem_jobs.run.outcome import StoredShard
from tandem_jobs.run.pipeline import Pipeline
from tandem_jobs.run.progress import RunProgress, busy_shares, overlap_s, say
from tandem_jobs.run.start_up import StartUp
from tandem_jobs.run.throughput import Throughput
from tandem_jobs.run.watchdog import watching
from tandem_workers.dataset.fallbacks import Fallback
from tandem_workers.stages.ray_data import Span


def make_shards(pipeline: Pipeline, todo: list[int], total: int, max_failed: int, start_up: StartUp) -> dict[str, Any]:
    """Run the pipeline over the missing shards, with progress. JobError if more than `max_failed` shards fail."""
    spans: list[Span] = []
    failed: dict[int, str] = {}
    warned: dict[str, None] = {}  # in order
    fallbacks: dict[Fallback, None] = {}
    todo_rows = sum(len(pipeline.plan.indices(shard)) for shard in todo)
    flow = pipeline.flow(len(todo))
    with (
        RunProgress(total, total - todo_rows, flow, partial(missing_reason, pipeline, flow)) as progress,
        watching(flow, pipeline.limits) as watchdog,
    ):
        for shard in pipeline.run(todo, flow) if todo else ():
            fallbacks |= dict.fromkeys(shard.fallbacks)
            if isinstance(shard, StoredShard):
                spans += shard.spans
                start_up.add(shard)
                for warning in shard.warnings:
                    if warning not in warned:
                        say(f"warning: {warning}")
                    warned[warning] = None
                progress.add(shard.num_rows, shard.spans)
                if shard.num_rows == pipeline.plan.shard_size:  # the last shard may be short
                    watchdog.learn(shard.spans)
            else:
                failed[shard.shard] = shard.cause
                check_failures(failed, max_failed)
    found = summarise(progress.throughput, start_up.elapsed_s, spans, failed, flow) | start_up.summary(spans)
    found |= {"warnings": list(warned)} if warned else {}
    return found | ({"fallbacks": summarise_fallbacks(fallbacks, spans)} if fallbacks else {})


def summarise(
    throughput: Throughput, seconds: float, spans: Sequence[Span], failed: Mapping[int, str], flow: Flow
) -> dict[str, Any]:
    """A run in numbers. `seconds`: from the start of the command to its last shard; speeds: see `Throughput`."""
    drafts = [s for s in spans if s.stage == "draft"]
    refines = [s for s in spans if s.stage == "refine"]
    return {
        "images": throughput.images,
        "seconds": round(seconds, 3),
        "working_s": round(throughput.working_s, 3),
        "images_per_s": round(throughput.images_per_s, 3),
        "steady_images_per_s": round(throughput.steady_images_per_s, 3),
        "stages": busy_shares(spans),
        "draft_refine_overlap_s": round(overlap_s(drafts, refines), 3),
        "failed_shards": dict(failed),
        **flow.summary(),
    }


def check_failures(failed: Mapping[int, str], max_failed: int) -> None:
    """Print which shard failed, or raise JobError if it is one too many."""
    shard, cause = list(failed.items())[-1]
    if len(failed) > max_failed:
        allowed = f"{len(failed)} shards failed, {max_failed} allowed; the last: " if max_failed else ""
        hint = "committed shards are kept; the same command resumes from them"
        raise JobError(f"{allowed}shard {shard}: {cause}", hint + ", --max-failed-shards leaves failures out")
    say(f"shard {shard} failed ({len(failed)} of {max_failed} allowed): {cause}")


def missing_reason(pipeline: Pipeline, flow: Flow, stage: StageState) -> str | None:
    """Why replicas of a stage are missing, if there is no GPU for them; None if they are only loading."""
    pool = next((pool for pool in pipeline.pools if pool.name == stage.name), None)
    if pool is None or not pipeline.gpus_per_replica:
        return None
    try:
        if num_unplaced() <= flow.optional:
            return None
        return why_unplaced(f"{stage.missing_needed} of {stage.needed} {stage.name} replicas", pool.nodes)
    except RpcError:  # will be asked again
        return None
