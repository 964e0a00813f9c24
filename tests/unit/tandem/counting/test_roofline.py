"""The roofline: its tables stand in docs/GPU.md, its bounds are above what was measured, its counts are right."""

from pathlib import Path

import pytest

from tandem.config import VQVAE_PRESET
from tandem.counting import roofline
from tandem.counting.costs import empty_var, scale_flops, tensor_bytes
from tandem.counting.roofline import BF16, CARDS, PLAIN, REFINER, Card, ForwardCost

DOCUMENT = (Path(__file__).parents[4] / "docs" / "GPU.md").read_text()


def test_the_document_has_the_tables():
    """Those of speed, and one row of the table of memory: all of them take up to a minute."""
    assert roofline.speed_tables() in DOCUMENT
    assert roofline.memory_row(8, 64) in DOCUMENT


@pytest.mark.slow
def test_the_document_has_all_tables():
    assert roofline.tables() in DOCUMENT


def test_the_papers_speed_is_below_the_roofline():
    for draft_steps, (speed, gain) in roofline.PAPER_SPEED.items():
        bound = roofline.images_per_s(draft_steps, 64, roofline.PAPER_CARD, with_decode=False)
        assert 0.4 < speed / bound < 0.6
        assert speed / roofline.PAPER_SPEED[None][0] == pytest.approx(gain, abs=0.06)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_more_images_at_once_are_never_slower(card):
    """Nor is CoDe slower than plain VAR, nor more for the refiner."""
    for draft_steps in roofline.SETTINGS:
        speeds = [roofline.images_per_s(draft_steps, batch, card, with_decode=True) for batch in (1, 8, 64)]
        assert speeds == sorted(speeds)
    at_64 = [roofline.images_per_s(draft_steps, 64, card, with_decode=False) for draft_steps in roofline.SETTINGS]
    assert at_64 == sorted(at_64, reverse=True)


def test_a_forward_takes_the_longer_of_two_times():
    card = Card("", tflops=1, gbps=10, gigabytes=1, source="")
    assert ForwardCost(2e12, 1e9).seconds(card) == pytest.approx(2)
    assert ForwardCost(1e12, 5e10).seconds(card) == pytest.approx(5)
    assert roofline.stage_roofline([ForwardCost(2e12, 1e9), ForwardCost(1e12, 5e10)], card) == pytest.approx(7)


def test_work_is_that_of_the_costs():
    found = roofline.scale_costs(REFINER, 8, 8, 10)
    assert [work.flops for work in found] == [8 * flops for flops in scale_flops(REFINER, 8, 10)]


def test_a_batch_of_none_moves_the_weights():
    """All of them in the first forward, but for tables of which rows are read; without AdaLN in a later one."""
    first, later = (work.bytes for work in roofline.scale_costs(REFINER, 0, 8, 10))
    width, tokens = REFINER.width, REFINER.pyramid.num_tokens
    tables = (REFINER.num_classes + 1 + tokens + 1 + 10) * width * 2
    assert first + tables == pytest.approx(tensor_bytes(empty_var(REFINER, BF16, PLAIN)), rel=2e-3)
    assert first - later == (6 * 16 + 2) * width * width * 2


@pytest.mark.parametrize(
    ("start", "which", "tokens", "seen", "drawn"),
    [(0, 0, 1, 1, 1), (0, 2, 9, 14, 9), (1, 0, 5, 1 + 5, 4), (1, 1, 9, 14, 9)],
    ids=["first", "third", "entry", "behind the entry"],
)
def test_bytes_of_an_image_by_hand(start, which, tokens, seen, drawn):
    """The refiner: two rows, 16 layers of width 1024, bfloat16; each scale that enters reads K and V up to itself."""
    one, two = (roofline.scale_costs(REFINER, batch, start, 3)[which].bytes for batch in (1, 2))
    cache, activations = 16 * 2 * 1024 * 2 * (tokens + seen), 16 * 32 * 1024 * 2 * tokens
    assert two - one == 2 * (cache + activations) + 2 * 4096 * 4 * drawn


def test_decode_reads_its_weights_once():
    one, two = (roofline.decode_costs(VQVAE_PRESET, batch)[0] for batch in (1, 2))
    image, weights = roofline.image_cost(VQVAE_PRESET)
    assert two.bytes - one.bytes == image.bytes
    assert one.bytes - image.bytes == weights
    assert one.flops == image.flops == pytest.approx(0.394e12, rel=1e-3)
    # the last convolution alone reads 160 channels of 256 x 256 pixels and writes 3
    assert image.bytes > 163 * 256 * 256 * 2


def test_one_process_takes_less_than_a_card_for_each_stage():
    taken = roofline.device_bytes(None, 1)
    assert set(taken) == {"draft", "decode", "together"}
    assert max(taken["draft"], taken["decode"]) < taken["together"] < taken["draft"] + taken["decode"]


def test_cards_are_those_of_the_data_sheets():
    assert {card.name: (card.tflops, card.gbps, card.gigabytes) for card in CARDS} == {
        "L20": (239 / 2, 864, 48),
        "L4": (242 / 2, 300, 24),
        "A100 80 GB SXM": (624 / 2, 2039, 80),
        "H100 SXM": (1979 / 2, 3350, 80),
    }
