"""Batches that do not fit are halved, and the user is warned."""

import warnings
from itertools import chain

import numpy as np
import pytest
import torch

from support.stage_inputs import rows, settings, with_room_for
from tandem import collaborative
from tandem.errors import TandemWarning
from tandem.graphs import Graphs, ScaleGraphs
from tandem_workers.dataset.fallbacks import keep_warnings
from tandem_workers.stages import drafter, refiner
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.oom import Halving
from tandem_workers.stages.refiner import Refiner

CPU_ERROR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
CUBLAS_ERROR = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
CUDNN_ERROR = RuntimeError("GET was unable to find an engine to execute this computation")
TRITON_ERROR = RuntimeError("Triton Error [CUDA]: out of memory")


class Device:
    """Has room for so many rows."""

    def __init__(self, room: int, error: BaseException):
        self.room, self.error, self.asked = room, error, []

    def __call__(self, some: slice) -> list[int]:
        count = some.stop - some.start
        self.asked.append(count)
        if count > self.room:
            raise self.error
        return list(range(some.start, some.stop))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), CPU_ERROR, CUBLAS_ERROR, CUDNN_ERROR, TRITON_ERROR],
)
def test_rows_come_in_their_order_and_the_size_that_fits_stays(error):
    halving, device = Halving("draft", 8), Device(3, error)
    with pytest.warns(TandemWarning) as warned:
        assert list(chain(*halving(device, 8))) == list(range(8))
    assert device.asked == [8, 4, 2, 2, 2, 2]
    assert [str(w.message)[:62] for w in warned] == [
        "draft: out of memory with 8 images at once, now 4; images of a",
        "draft: out of memory with 4 images at once, now 2; images of a",
    ]
    device.asked.clear()
    assert list(chain(*halving(device, 5))) == list(range(5))
    assert device.asked == [2, 2, 1]


def test_graphs_and_their_caches_make_room():
    graphs = Graphs(capture=lambda work: work)
    graphs.scale_graphs.items[1, 0, 3] = ScaleGraphs(cache=None, condition=None)
    graphs.whole_graphs.items[1, 0, 3] = ((), lambda: ())
    with pytest.warns(TandemWarning):
        Halving("draft", 2)(Device(1, MemoryError()), 2)
    assert not graphs.scale_graphs.items and not graphs.whole_graphs.items


def test_one_row_that_does_not_fit_is_an_error():
    with pytest.warns(TandemWarning), pytest.raises(MemoryError):
        Halving("draft", 2)(Device(0, MemoryError()), 2)


def test_other_errors_are_not_hidden():
    device = Device(0, RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal"):
        Halving("draft", 8)(device, 8)
    assert device.asked == [8]


def test_stages_make_the_same_images_in_halves(models, monkeypatch):
    """The tiny models in float32 give the same tokens in batches of any size."""
    prefixes = Drafter(models, settings(batch=4)).load()(rows(0, 7))
    expected = Refiner(models, settings(batch=4), keep_tokens=True).load()(prefixes)
    for module, name in ((drafter, "begin_draft"), (refiner, "begin_refine"), (refiner, "decode")):
        monkeypatch.setattr(module, name, with_room_for(2, getattr(collaborative, name)))
    with pytest.warns(TandemWarning, match="draft: out of memory with 4 images at once, now 2"):
        halved = Drafter(models, settings(batch=4)).load()(rows(0, 7))
    np.testing.assert_array_equal(halved.prefix, prefixes.prefix)
    with pytest.warns(TandemWarning, match="out of memory with 4 images at once, now 2") as warned:
        found = Refiner(models, settings(batch=4), keep_tokens=True).load()(halved)
    assert [str(w.message).split(":")[0] for w in warned] == ["refine", "decode"]
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert np.abs(found.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1


def test_an_actor_keeps_our_warnings_once_and_shows_others():
    with warnings.catch_warnings():
        shown: list[str] = []
        warnings.showwarning = lambda message, *where, **more: shown.append(str(message))
        kept = keep_warnings()
        for _ in range(2):
            warnings.warn("ours", TandemWarning, stacklevel=1)
        warnings.warn("another's", UserWarning, stacklevel=1)
    assert kept == ["ours"]
    assert shown == ["another's"]
