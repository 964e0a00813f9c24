"""A shard as a row of Ray Data and back."""

import numpy as np
import pyarrow as pa
import pytest

from tandem.errors import JobError
from tandem_workers.dataset.shards import PixelShard, PrefixShard, ShardRows
from tandem_workers.stages import ray_data
from tandem_workers.stages.ray_data import FINISHER, Span, StageActor, from_row, to_row

BASE = {
    "shard": 7,
    "index": np.arange(3, dtype=np.int64),
    "label": np.array([2, 0, 1], np.int32),
    "extra": {"note": pa.array(["a", None, "c"]), "weight": pa.array([1.5, None, 2.0], pa.float32())},
    "seconds": {"draft": 0.5},
}
SHARDS = [
    ShardRows(**BASE),
    PrefixShard(**BASE, prefix=np.arange(15, dtype=np.uint16).reshape(3, 5), draft_steps=2),
    PixelShard(**BASE, pixels=np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3)),
    PixelShard(**BASE, pixels=np.zeros((3, 2, 2, 3), np.uint8), tokens=np.full((3, 4), 65_535, np.uint16)),
]


def through_a_block(row: dict) -> dict:
    """What Ray Data makes of a row between two stages: an Arrow block, read back as a batch of one."""
    from ray.data.block import BlockAccessor

    block = BlockAccessor.batch_to_block(row)
    return BlockAccessor.for_block(block).to_numpy()


@pytest.mark.parametrize("shard", SHARDS, ids=lambda s: type(s).__name__)
def test_a_shard_survives_the_way_between_stages(shard):
    spans = [Span("draft", "node/gpu0", 1.0, 2.5)]
    found, found_spans = from_row(through_a_block(to_row(shard, spans)), type(shard))
    assert found_spans == spans
    assert found.shard == 7
    assert dict(found.seconds) == {"draft": 0.5}
    for name in ("index", "label", "prefix", "tokens", "pixels"):
        expected, actual = getattr(shard, name, None), getattr(found, name, None)
        assert (expected is None) == (actual is None), name
        if expected is not None:
            assert actual.dtype == expected.dtype
            np.testing.assert_array_equal(actual, expected)
            if name != "pixels":
                actual[...] = 0  # ours to write: Ray's own arrays are read-only
    for name, column in BASE["extra"].items():
        assert found.extra[name].equals(column)
    if isinstance(shard, PrefixShard):
        assert found.draft_steps == 2


def test_pixels_are_not_copied():
    row = through_a_block(to_row(SHARDS[2], []))
    assert np.shares_memory(from_row(row, PixelShard)[0].pixels, row["pixels"])


def test_a_row_of_another_stage_is_refused():
    with pytest.raises(TypeError, match="expected a row that holds a PixelShard, got a PrefixShard"):
        from_row(to_row(SHARDS[1], []), PixelShard)


class Pixels:
    """A refiner that paints everything with the shard's number."""

    name = "refine"

    def load(self):
        return self

    def __call__(self, shard):
        return PixelShard.of(shard, pixels=np.full((len(shard), 2, 2, 3), shard.shard, np.uint8))


class Prefixes:
    name = "draft"

    def load(self):
        return self

    def __call__(self, shard):
        return PrefixShard.of(shard, prefix=np.zeros((len(shard), 5), np.uint16), draft_steps=2)


def test_finishers_do_the_next_pools_work_and_it_passes_their_shards_through(monkeypatch):
    monkeypatch.setattr(ray_data, "replica_name", lambda: "here/gpu0")
    drafter, refiner = (
        lambda: StageActor(ShardRows, [Prefixes()], further=[Pixels()]),
        lambda: StageActor(PrefixShard, [Pixels()], passes=PixelShard),
    )
    row = to_row(SHARDS[0], [])
    drafted = drafter()(row)
    monkeypatch.setenv(FINISHER, "1")
    finished = drafter()(row)
    assert from_row(drafted, PrefixShard)[0].draft_steps == 2
    assert [span.stage for span in from_row(finished, PixelShard)[1]] == ["draft", "refine"]
    refine = refiner()
    assert refine(finished) is finished
    np.testing.assert_array_equal(refine(drafted)["pixels"], finished["pixels"])
    with pytest.raises(TypeError, match="expected a row that holds a PrefixShard, got a PixelShard"):
        StageActor(PrefixShard, [Pixels()])(finished)


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (JobError("logits of scales 1 to 3 are not finite"), False),
    ],
)
def test_an_actor_whose_gpu_is_lost_ends_in_place_of_failing_every_later_shard(monkeypatch, capsys, error, ends):
    class Broken:
        name = "draft"

        def load(self):
            return self

        def __call__(self, shard):
            raise error

    class Ended(BaseException):
        pass

    def end(code):
        assert code == 1
        raise Ended

    monkeypatch.setattr("tandem_workers.stages.ray_data.os._exit", end)
    monkeypatch.setattr("tandem_workers.stages.ray_data.replica_name", lambda: "node/gpu0")
    actor, row = StageActor(ShardRows, [Broken()]), to_row(SHARDS[0], [])
    if ends:
        with pytest.raises(Ended):
            actor(row)
        assert capsys.readouterr().err.startswith(f"RuntimeError: {error}")
    else:
        assert ray_data.is_failed(actor(row))
