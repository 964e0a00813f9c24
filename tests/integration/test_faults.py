"""What happens to a run when its parts die or misbehave. Nothing is lost, nothing doubled, bytes stay the same."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from support.runs import IMAGES, committed, digests, job, kill_workers, start, wait_until
from support.tiny_models import CLASS_NAMES, tiny_var
from tandem.checkpoints.weights import save_checkpoint
from tandem.errors import JobError
from tandem_jobs.bench.bench_pipeline import Consume, Rows
from tandem_jobs.cli import main
from tandem_jobs.run.make_shards import make_shards
from tandem_jobs.run.pipeline import MAX_FAILED_STARTS, Pipeline
from tandem_jobs.run.pools import ActorPool
from tandem_jobs.run.start_up import StartUp
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import PixelShard, ShardPlan, ShardRows
from tandem_workers.dataset.verify import verify
from tandem_workers.stages.ray_data import Stage
from tandem_workers.storage.places import open_store

pytestmark = pytest.mark.usefixtures("ray_cluster")
SPLIT = ("--placement", "split", "--drafters", "1", "--refiners", "1")


@pytest.mark.parametrize("stage", ["draft", "refine"])
def test_a_killed_actor_is_started_again_and_its_shards_are_made_again(stage, undisturbed, tiny_models, out, measured):
    recovery_s: list[float] = []

    def strike() -> None:
        wait_until(lambda: committed(out) >= 3, "three shards")
        assert kill_workers(stage) == 1
        before = committed(out)
        recovery_s.append(wait_until(lambda: committed(out) > before + 5, "shards after the fault"))

    striker = threading.Thread(target=strike)
    striker.start()
    assert main(job(tiny_models, out, *SPLIT)) == 0
    striker.join()
    measured(f"{stage} killed: {recovery_s[0]:.1f} s")
    assert digests(out) == undisturbed
    assert not verify(open_store(out)).problems


@pytest.mark.slow
def test_a_run_stopped_and_stopped_again_is_completed_by_the_same_command(undisturbed, tiny_models, out, tmp_path):
    """A killed one: in test_storage_faults.py."""
    argv, log = job(tiny_models, out), tmp_path / "log"
    for number in (signal.SIGINT, signal.SIGTERM):
        there = committed(out)
        run = start(argv, log)
        wait_until(lambda there=there: committed(out) >= there + 3, "three shards more")
        run.send_signal(number)
        told = time.monotonic()
        assert run.wait(timeout=20) == 130
        assert time.monotonic() - told < 3
        assert "To resume:\n  tandem generate --drafter" in log.read_text()
        assert "Traceback" not in log.read_text()
    assert 6 <= committed(out) < IMAGES
    assert main(argv) == 0
    assert digests(out) == undisturbed
    assert not verify(open_store(out)).problems


@pytest.fixture
def poisoned(tiny_models, tmp_path) -> dict[str, str]:
    """Models whose drafter knows nothing of the first class but NaN."""
    drafter = tiny_var(3, seed=1)
    drafter.class_emb.weight[0] = torch.nan
    save_checkpoint(tmp_path / "poisoned.safetensors", drafter, {"classes": list(CLASS_NAMES)}, torch.float32)
    return {**tiny_models, "drafter": str(tmp_path / "poisoned.safetensors")}


def command(models: dict[str, str], out: str, *more: str) -> list[str]:
    """Eight images in four shards, the first class in the first."""
    files = [part for role, path in models.items() for part in (f"--{role}", path)]
    labels = Path(out).with_name("labels.csv")
    labels.write_text("label,count\n" + "".join(f"{label},2\n" for label in range(4)))
    return ["generate", *files, "--labels", str(labels), "--batch", "2", "--shard-size", "2", "--out", out, *more]


def test_logits_that_are_no_numbers_end_the_run_with_one_line_or_are_left_out_if_that_is_allowed(poisoned, out, capsys):
    assert main(command(poisoned, out)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert errors == ["error: shard 0: draft: logits of scales 1 to 3 are not finite: weights or dtype are unfit"]
    assert main(command(poisoned, out, "--max-failed-shards", "1")) == 0  # tried again, and it fails again
    assert '"failed_shards": {"0": "draft: logits' in capsys.readouterr().out
    assert sorted(digests(out)) == ["00001.tar", "00002.tar", "00003.tar"]
    closing = Manifest(open_store(out)).totals()
    assert (closing.shards, closing.rows) == (3, 6)
    assert "1 of 4 shards could not be made and are missing: 0" in Path(out, "README.md").read_text()
    verdict = verify(open_store(out))
    assert (verdict.failed, verdict.complete, verdict.problems) == ([0], True, [])
    assert main(["verify", out]) == 0


def run_with(draft: Stage, count: int) -> dict:
    """A pipeline of only this stage, over shards of one row each."""
    plan = ShardPlan(count, 1)
    pipeline = Pipeline(plan, [ActorPool("draft", ShardRows, [Rows(plan), draft], 1)], Consume(), 0, 1)
    return make_shards(pipeline, list(range(count)), count, max_failed=0, start_up=StartUp())


def test_an_actor_that_cannot_start_is_tried_again_and_ends_the_run_with_the_cause(tmp_path):
    starts = tmp_path / "starts"

    class Unfit:  # in here, so that it travels to the workers, which have no tests
        name = "draft"

        def load(self) -> Stage:
            with starts.open("a") as file:
                file.write("x")
            raise OSError("no device answers")

        def __call__(self, shard: ShardRows) -> PixelShard:
            raise AssertionError("nothing may come here")

    with pytest.raises(JobError, match="OSError: no device answers"):
        run_with(Unfit(), 4)
    assert len(starts.read_text()) == 1 + MAX_FAILED_STARTS


def test_an_actor_whose_first_start_fails_costs_time_alone(tmp_path):
    first = tmp_path / "first"

    class Late:
        name = "draft"

        def load(self) -> Stage:
            if not first.exists():
                first.touch()
                raise OSError("no device answers yet")
            return self

        def __call__(self, shard: ShardRows) -> PixelShard:
            return PixelShard.of(shard, pixels=np.full((1, 16, 16, 3), shard.shard, np.uint8))

    assert run_with(Late(), 4)["images"] == 4
    assert first.exists()
