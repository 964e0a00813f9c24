"""Which rows a step takes: whole epochs, the same global batch for any number of workers, drawn by weight."""

import numpy as np
import pytest
import torch

from tandem.training.batches import Batches, TokenSet, generator, micro_batches


def test_each_epoch_takes_every_row_once():
    batches = Batches(seed=3, size=10, batch=4)
    taken = torch.cat([batches.rows(step).index for step in range(10)])
    epochs = taken.view(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_a_batch_larger_than_the_data_takes_whole_epochs():
    index = torch.cat([Batches(0, 3, 8).rows(step).index for step in range(3)])
    assert torch.bincount(index).tolist() == [8, 8, 8]


def test_a_step_does_not_depend_on_the_steps_before():
    straight, jumped = Batches(1, 10, 4, views=3, label_dropout=0.5), Batches(1, 10, 4, views=3, label_dropout=0.5)
    for step in range(8):
        straight.rows(step)
    one, other = straight.rows(7), jumped.rows(7)
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.mark.parametrize("seed_bits", [0, 40])
def test_another_seed_gives_other_batches(seed_bits):
    """Also where the seeds differ in their high bits alone, which torch's own seeding ignores on a CPU."""
    one, other = (Batches(seed << seed_bits, 1000, 16).rows(0).index for seed in (1, 2))
    assert not torch.equal(one, other)
    assert torch.rand(1, generator=generator(1, 16, 5)) != torch.rand(1, generator=generator(1, 17, 5))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_parts_of_workers_make_up_the_global_batch(world, micro_batch):
    batches = Batches(0, 100, 7)
    slices = [micro_batches(len(batches.part(5, rank, world)), 7, world, micro_batch) for rank in range(world)]
    assert len({len(each) for each in slices}) == 1  # collective calls of all workers meet
    places = [batches.part(5, rank, world)[piece].place for rank in range(world) for piece in slices[rank]]
    assert all(len(piece) <= (micro_batch or 7) for piece in places)
    assert torch.cat(places).sort().values.tolist() == list(range(7))
    index = torch.cat([batches.part(5, rank, world).index for rank in range(world)])
    assert sorted(index.tolist()) == sorted(batches.rows(5).index.tolist())


def test_views_of_a_row_take_turns():
    batches = Batches(0, 4, 4, views=3)
    seen = {(int(i), int(v)) for step in range(3) for i, v in zip(*batches.in_epochs(step), strict=True)}
    assert len(seen) == 12


def test_rows_are_drawn_by_weight():
    weights = np.array([0.0, 1, 3, 0])
    rows = Batches(0, 4, 4000, weights, views=2).rows(0)
    counts = torch.bincount(rows.index, minlength=4)
    assert counts[[0, 3]].tolist() == [0, 0] and counts[2] / counts[1] == pytest.approx(3, rel=0.15)
    assert rows.view.unique().tolist() == [0, 1]


def test_a_share_of_labels_is_dropped():
    batches = Batches(0, 10, 2000, label_dropout=0.1)
    assert batches.rows(3).dropped.float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert not torch.equal(batches.rows(3).dropped, batches.rows(4).dropped)
    assert not Batches(0, 10, 2000).rows(3).dropped.any()


@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.1, 0.1]])
def test_how_often_a_drawn_view_comes_is_what_batches_do(weights):
    given = None if weights is None else np.array(weights)
    tokens = TokenSet(np.zeros((4, 3, 5), np.uint16), np.zeros(4, np.int32), given)
    batches, steps = Batches(0, 4, 60, views=3, weights=given), 40
    rows = [batches.rows(step) for step in range(steps)]
    counts = torch.bincount(torch.cat([part.index * 3 + part.view for part in rows]), minlength=12)
    found = (counts.float() ** 2).sum() / counts.sum()
    assert tokens.repeats(steps * 60) == pytest.approx(found.item(), rel=0.03)
