# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of decoding on a GPU: the many small steps between products, merged.

Each reads its inputs once, computes in float32 and rounds once. `tandem.fused`, `tandem.fused_fp8` and
`tandem.fused_vqvae` launch them; plain torch defines what they compute.

Shapes: R rows, L tokens, C width, H heads, D head size; B images, P pixels of a feature map, G groups.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_fp8(value, inside, out, row_scale):
    """Store a row, divided by a float32 scale, as FP8 (e4m3, up to 448), and its scale."""
    largest = tl.max(tl.abs(tl.where(inside, value, 0.0)))
    factor = tl.maximum(largest, 1e-12) / 448.0
    tl.store(row_scale, factor)
    tl.store(out, (value / factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def quantised_rows(
    x, out, row_scale, width, tokens, row_stride, token_stride, head_stride,
    GELU: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows in FP8, `out` [R, L, C] contiguous with `row_scale` [R, L], of x [R, L, C / SIZE, SIZE] with the given
    strides, or of its GELU (tanh approximation). One program per token."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    source = (token // tokens) * row_stride + (token % tokens) * token_stride
    source += (column // SIZE) * head_stride + column % SIZE
    value = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        value *= tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    store_fp8(value, inside, out + token * width + column, row_scale + token)


@triton.jit
def gated_norm(
    x, branch, gate, scale, shift, x_out, out, row_scale, width, tokens, x_stride, modulation_stride, eps,
    HAS_BRANCH: tl.constexpr, HAS_OUT: tl.constexpr, QUANTISED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x_out = x + branch * gate, out = layer_norm(x_out) * (1 + scale) + shift; one program per token.

    x [R, L, C] with stride `x_stride` between rows, branch, x_out and out [R, L, C] contiguous; gate, scale and shift
    [R, C] with stride `modulation_stride`. QUANTISED: out is FP8, its rows scaled by `row_scale` float32 [R, L].
    """
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    column = tl.arange(0, BLOCK)
    inside = column < width
    modulation = row * modulation_stride + column
    value = tl.load(x + row * x_stride + (token % tokens) * width + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        added = tl.load(branch + token * width + column, mask=inside, other=0.0).to(tl.float32)
        value += added * tl.load(gate + modulation, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(x_out.dtype.element_ty)
        tl.store(x_out + token * width + column, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if HAS_OUT:
        centred = tl.where(inside, value - tl.sum(value) / width, 0.0)
        normed = centred / tl.sqrt(tl.sum(centred * centred) / width + eps)
        scaled = normed * (1 + tl.load(scale + modulation, mask=inside, other=0.0).to(tl.float32))
        shifted = scaled + tl.load(shift + modulation, mask=inside, other=0.0).to(tl.float32)
        if QUANTISED:
            store_fp8(shifted, inside, out + token * width + column, row_scale + token)
        else:
            tl.store(out + token * width + column, shifted.to(out.dtype.element_ty), mask=inside)


@triton.jit
def head_norm(
    x, scale, shift, strength, partner, out, width, tokens, x_stride, modulation_stride, first, eps,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [B, L, C] = layer_norm(x) * (1 + scale) + shift, and under guidance cond + strength (cond - uncond).

    Row `first` + b of x is conditional, row `partner`[b] is not. `strength` float32 [B], `partner` int64 [B].
    """
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = (token % tokens) * width + column
    found = tl.zeros([BLOCK], dtype=tl.float32)
    for branch in tl.static_range(2 if GUIDED else 1):
        this = first + row if branch == 0 else tl.load(partner + row)
        value = tl.load(x + this * x_stride + place, mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, value - tl.sum(value) / width, 0.0)
        normed = centred / tl.sqrt(tl.sum(centred * centred) / width + eps)
        modulation = this * modulation_stride + column
        scaled = normed * (1 + tl.load(scale + modulation, mask=inside, other=0.0).to(tl.float32))
        hidden = scaled + tl.load(shift + modulation, mask=inside, other=0.0).to(tl.float32)
        if GUIDED:
            t = tl.load(strength + row)
            found += hidden * (1 + t if branch == 0 else -t)
        else:
            found = hidden
    tl.store(out + token * width + column, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def split_heads(
    qkv, head_scale, q, k, v, tokens, first_query, heads, kv_stride_row, kv_stride_head, kv_start,
    HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """q and k with norm 1, q times `head_scale` float32 [H]; k and v written to their place in the cache.

    qkv [R, L, 3, H, D] and q [R, L - first_query, H, D] contiguous; k and v [R, H, ., D] with the given strides, from
    token `kv_start` on. One program per token.
    """
    token = tl.program_id(0).to(tl.int64)
    row, place = token // tokens, token % tokens
    head = tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, SIZE)[None, :]
    inside = (head < heads) & (lane < SIZE)
    source = qkv + token * 3 * heads * SIZE + head * SIZE + lane
    target = row * kv_stride_row + head * kv_stride_head + (kv_start + place) * SIZE + lane
    key = tl.load(source + heads * SIZE, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(key * key, axis=1))[:, None]
    tl.store(k + target, (key / tl.maximum(length, 1e-12)).to(k.dtype.element_ty), mask=inside)
    tl.store(v + target, tl.load(source + 2 * heads * SIZE, mask=inside, other=0.0), mask=inside)
    if place >= first_query:
        query = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        length = tl.sqrt(tl.sum(query * query, axis=1))[:, None]
        factor = tl.load(head_scale + head, mask=head < heads, other=0.0) / tl.maximum(length, 1e-12)
        queries = (row * (tokens - first_query) + place - first_query) * heads * SIZE
        tl.store(q + queries + head * SIZE + lane, (query * factor).to(q.dtype.element_ty), mask=inside)


@triton.jit
def add_and_measure(
    x, other, bias, total, mean, squares, pixels, channels, tile_pixels, width,
    HAS_OTHER: tl.constexpr, HAS_TOTAL: tl.constexpr, DOUBLED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """total = x + other + bias in NHWC, with the mean and squared deviations of each channel in each tile of pixels.

    x, other, total [B, P, C]; bias [C]; mean and squares float32 [B, tiles, C]. One program per tile of `tile_pixels`.
    DOUBLED: x is [B, h + 1, w + 1, 4, C], the four pixels of every input of a 2 x 2 convolution, and total
    [B, 2h, 2w, C] with `width` = 2w.
    """
    image, tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)[None, :]
    there = channel < channels
    offset = tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)
    # each lane sums deviations from its first value, so that no large sums are subtracted
    count = tl.zeros([ROWS, 1], dtype=tl.float32)
    pivot = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    first_sum = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    second_sum = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for first in range(0, tile_pixels, ROWS):
        pixel = tile * tile_pixels + first + tl.arange(0, ROWS)[:, None]
        inside = (pixel < pixels) & (first + tl.arange(0, ROWS)[:, None] < tile_pixels)
        mask = inside & there
        place = (image * pixels + pixel) * channels + channel
        if DOUBLED:
            line, column = pixel // width, pixel % width
            down, right = line % 2, column % 2
            corner = (line // 2 + down) * (width // 2 + 1) + column // 2 + right
            corners = (pixels // width // 2 + 1) * (width // 2 + 1)
            source = ((image * corners + corner) * 4 + down * 2 + right) * channels + channel
        else:
            source = place
        value = tl.load(x + source, mask=mask, other=0.0).to(tl.float32) + offset
        if HAS_OTHER:
            value += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
        if HAS_TOTAL:
            rounded = value.to(total.dtype.element_ty)
            tl.store(total + place, rounded, mask=mask)
            value = rounded.to(tl.float32)
        pivot = tl.where(first == 0, value, pivot)
        away = tl.where(mask, value - pivot, 0.0)
        count += inside.to(tl.float32)
        first_sum += away
        second_sum += away * away
    each = tl.maximum(count, 1.0)
    lane_mean = pivot + first_sum / each
    lane_squares = second_sum - first_sum * (first_sum / each)
    number = tl.sum(count)
    middle = tl.sum(lane_mean * count, axis=0) / number
    difference = lane_mean - middle[None, :]
    spread = tl.sum(lane_squares + difference * difference * count, axis=0)
    found = (image * tl.num_programs(1) + tile) * channels + tl.arange(0, BLOCK)
    tl.store(mean + found, middle, mask=tl.arange(0, BLOCK) < channels)
    tl.store(squares + found, spread, mask=tl.arange(0, BLOCK) < channels)


@triton.jit
def group_factors(
    mean, squares, weight, bias, before, factor, offset, pixels, channels, group, tiles, tile_pixels, eps,
    TILES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """GroupNorm as a factor and an offset per channel, float32 [B, C], from the statistics of tiles.

    `before` [C] is the bias that the statistics include and x lacks. One program per image and group of `group`
    channels.
    """
    image, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tile = tl.arange(0, TILES)[:, None]
    channel = tl.arange(0, GROUP)[None, :]
    mask = (tile < tiles) & (channel < group)
    place = (image * tiles + tile) * channels + which * group + channel
    counts = tl.minimum(tile_pixels, pixels - tile * tile_pixels).to(tl.float32)
    counts = tl.where(mask, counts, 0.0)
    middle = tl.load(mean + place, mask=mask, other=0.0)
    number = pixels.to(tl.float32) * group
    average = tl.sum(middle * counts) / number
    away = tl.where(mask, middle - average, 0.0)
    variance = (tl.sum(tl.load(squares + place, mask=mask, other=0.0)) + tl.sum(away * away * counts)) / number
    each = which * group + tl.arange(0, GROUP)
    there = tl.arange(0, GROUP) < group
    scale = tl.load(weight + each, mask=there, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    shift = tl.load(bias + each, mask=there, other=0.0).to(tl.float32)
    shift += (tl.load(before + each, mask=there, other=0.0).to(tl.float32) - average) * scale
    tl.store(factor + image * channels + each, scale, mask=there)
    tl.store(offset + image * channels + each, shift, mask=there)


@triton.jit
def scale_and_activate(
    x, factor, offset, out, pixels, channels,
    SILU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = x * factor + offset, or SiLU of it: x and out [B, P, C], factor and offset float32 [B, C]."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)[None, :]
    pixel = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    there = channel < channels
    mask = (pixel < pixels) & there
    place = (image * pixels + pixel) * channels + channel
    scale = tl.load(factor + image * channels + channel, mask=there, other=0.0)
    shift = tl.load(offset + image * channels + channel, mask=there, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * scale + shift
    if SILU:
        value = value / (1 + tl.exp(-value))
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
