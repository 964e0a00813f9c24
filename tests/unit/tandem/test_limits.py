"""How many rows go through a layer together."""

import pytest
import torch

from tandem.config import VAR_PRESETS
from tandem.limits import CPU, pretend, rows_together

GLIBC_MAPS_FROM = 2**25
HOST = torch.device("cpu")


@pytest.mark.parametrize("preset", ["d16", "d30"])
@pytest.mark.parametrize("tokens", [1, 4, 100, 256])
def test_what_goes_through_a_layer_in_float32_stays_below_what_glibc_maps(preset, tokens):
    config = VAR_PRESETS[preset]
    rows = rows_together(config, 128, tokens, torch.float32, HOST)
    assert rows * tokens <= CPU.tokens
    assert rows * tokens * config.mlp_ratio * config.width * 4 < GLIBC_MAPS_FROM
    if rows < 128:  # in one group less they would be too many
        more = -(-128 // (-(-128 // rows) - 1))
        assert more * tokens > CPU.tokens or more * tokens * config.mlp_ratio * config.width * 4 > CPU.hidden_bytes


def test_groups_are_alike():
    assert rows_together(VAR_PRESETS["d16"], 16, 256, torch.float32, HOST) == 6  # 7 would fit, and leave 2 over


def test_one_row_goes_through_however_long_it_is():
    assert rows_together(VAR_PRESETS["d30"], 16, 5000, torch.float32, HOST) == 1


def test_a_card_takes_all_rows_and_meta_tensors_follow_the_device_that_is_pretended():
    d30, meta = VAR_PRESETS["d30"], torch.device("meta")
    assert rows_together(d30, 256, 256, torch.bfloat16, torch.device("cuda")) == 256
    assert rows_together(d30, 256, 256, torch.float32, meta) == 256
    with pretend(HOST):
        for dtype in (torch.float32, torch.bfloat16):
            assert rows_together(d30, 256, 256, dtype, meta) == rows_together(d30, 256, 256, dtype, HOST) < 256
