"""Upper bounds of decoding speed on some GPUs: a roofline from counted work, bytes moved and data sheets.

Shapes: B images, R rows (2 B with CFG), L tokens, l tokens of one scale, C width, V codes. Units: floating-point
operations, bytes, seconds. `python -m tandem.counting.roofline` prints the tables of docs/GPU.md.

A forward takes the longer of two times: work over the dense peak in bfloat16, and bytes over the memory bandwidth.
Bytes are what remains if everything but the matrix products is fused into as few kernels as possible:
- weights: those that the forward reads, once. AdaLN is read only by the first forward of a stage;
- KV cache: K and V of the new tokens written, and those of all tokens that a scale sees read, in every layer;
- activations: `passes` values of width C read or written for each token in every layer;
- logits: float32, written by the head and read by the sampling once.
Source of the method: Williams et al., Roofline, CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from tandem.assembly import PLAIN, build_empty
from tandem.config import VAR_PRESETS, VQVAE_PRESET, SamplingConfig, VarConfig, VqvaeConfig
from tandem.counting import costs

CUDA, BF16, SAMPLING = torch.device("cuda"), torch.bfloat16, SamplingConfig()
SIZE, FLOAT = 2, 4  # bytes of a bfloat16 and of a float32
ROWS = 2  # of an image, under CFG

DRAFTER, REFINER = VAR_PRESETS["d30"], VAR_PRESETS["d16"]
SCALES = DRAFTER.pyramid.num_scales
SETTINGS: tuple[int | None, ...] = (6, 7, 8, 9, None)  # N, or None for plain VAR of the drafter
CELLS = [(draft_steps, batch) for draft_steps in SETTINGS for batch in (1, 8, 64)]
# CoDe (arXiv 2411.17787), Table 1: images a second on an L20 at batch 64 in float16, without VQVAE decode, and the
# speed-up over plain VAR
PAPER_BATCH = 64
PAPER_SPEED: dict[int | None, tuple[float, float]] = {
    6: (50.39, 2.9),
    7: (40.00, 2.3),
    8: (30.33, 1.7),
    9: (21.54, 1.2),
    None: (17.71, 1.0),
}


@dataclass(frozen=True)
class Card:
    """
    Attributes:
        name: of the GPU.
        tflops: dense peak in bfloat16 with float32 sums, without sparsity, in 10^12 operations a second.
        gbps: memory bandwidth in 10^9 bytes a second.
        gigabytes: memory in 10^9 bytes.
        source: where the figures are from.
    """

    name: str
    tflops: float
    gbps: float
    gigabytes: float
    source: str


# The data sheets of L4 and H100 give bfloat16 with sparsity; the dense peak is half. TensorRT-LLM by NVIDIA has dense
# figures of all four, rounded: tensorrt_llm/auto_parallel/cluster_info.py (119, 120, 312, 989), with these bandwidths.
CARDS = (
    Card("L20", 119.5, 864, 48, "no public data sheet: NVIDIA's figures in Tom's Hardware, February 2024"),
    Card("L4", 121, 300, 24, "data sheet 2595652: 242 with sparsity"),
    Card("A100 80 GB SXM", 312, 2039, 80, "data sheet 2188504: 312, and 624 with sparsity"),
    Card("H100 SXM", 989.5, 3350, 80, "data sheet: 1,979 with sparsity"),
)
PAPER_CARD = CARDS[0]


@dataclass(frozen=True)
class ForwardCost:
    """Operations of one forward of a batch, and bytes moved between memory and chip."""

    flops: float
    bytes: float

    def seconds(self, card: Card) -> float:
        """Least time of the forward on this card."""
        return max(self.flops / (card.tflops * 1e12), self.bytes / (card.gbps * 1e9))


def scale_costs(config: VarConfig, batch: int, start: int, stop: int) -> list[ForwardCost]:
    """Each forward of a batch at the scales start..stop (0-based), under CFG. The first takes the prefix too."""
    C, depth, offsets = config.width, config.depth, config.pyramid.offsets
    sizes = [n * n for n in config.pyramid.patch_nums]
    matrices = depth * (4 + 2 * config.mlp_ratio) * C * C + config.latent_channels * C
    modulation = 6 * C * C * (1 if config.shared_adaln else depth) + 2 * C * C
    # norm 2, q k v 4, lengths of q and k 4, attention 2, projection 2, gate 3, norm 2, MLP 2 + 2 x ratio, gate 3
    passes = 24 + 2 * config.mlp_ratio
    forwards = []
    for scale, flops in zip(range(start, stop), costs.scale_flops(config, start, stop, ROWS), strict=True):
        entered = range(scale + 1) if scale == start else range(scale, scale + 1)
        tokens = sum(sizes[s] for s in entered)
        seen = sum(offsets[s + 1] for s in entered)
        weights = (matrices + (modulation if scale == start else 0)) * SIZE + C * config.vocab_size * FLOAT
        cache = depth * 2 * C * (tokens + seen) * SIZE
        activations = depth * passes * C * tokens * SIZE
        logits = 2 * config.vocab_size * sizes[scale] * FLOAT
        forwards.append(ForwardCost(batch * flops, weights + batch * (ROWS * (cache + activations) + logits)))
    return forwards


@lru_cache
def image_cost(config: VqvaeConfig) -> tuple[ForwardCost, int]:
    """VQVAE decode of one image, and the bytes of its weights: inputs and outputs of every convolution and norm."""
    vqvae: Any = build_empty(config)
    moved = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += (inputs[0].numel() + output.numel()) * SIZE

    for module in vqvae.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.register_forward_hook(count)
    grid = config.pyramid.grid
    with torch.inference_mode():
        vqvae.decode_latents(torch.empty(1, config.latent_channels, grid, grid, device=costs.META))
    weights = sum(p.numel() for part in (vqvae.decoder, vqvae.post_quant_conv) for p in part.parameters()) * SIZE
    return ForwardCost(costs.decode_flops(config), moved), weights


def decode_costs(config: VqvaeConfig, batch: int) -> list[ForwardCost]:
    """VQVAE decode of a batch, as one forward."""
    image, weights = image_cost(config)
    return [ForwardCost(batch * image.flops, batch * image.bytes + weights)]


def stages(draft_steps: int | None, batch: int) -> dict[str, list[ForwardCost]]:
    """The forwards of each stage. Plain VAR has no refiner."""
    refined = scale_costs(REFINER, batch, draft_steps, SCALES) if draft_steps else []
    drafted = scale_costs(DRAFTER, batch, 0, draft_steps or SCALES)
    return {"draft": drafted, "refine": refined, "decode": decode_costs(VQVAE_PRESET, batch)}


def stage_roofline(forwards: Iterable[ForwardCost], card: Card) -> float:
    """Least seconds that a stage takes: its forwards run one after another."""
    return sum(forward.seconds(card) for forward in forwards)


def images_per_s(draft_steps: int | None, batch: int, card: Card, with_decode: bool) -> float:
    """Upper bound if the stages take turns on one card."""
    found = stages(draft_steps, batch)
    return batch / sum(stage_roofline(w, card) for stage, w in found.items() if with_decode or stage != "decode")


def device_bytes(draft_steps: int | None, batch: int) -> dict[str, int]:
    """Bytes of each stage on a card of its own, and of all in one process ("together"): the weights of all models, plus
    the working memory of the largest stage."""
    found = {
        "draft": costs.var_bytes(DRAFTER, batch, 0, draft_steps or SCALES, BF16, CUDA, PLAIN, SAMPLING),
        "decode": costs.vqvae_bytes(VQVAE_PRESET, batch, BF16, CUDA),
    }
    if draft_steps:
        found["refine"] = costs.var_bytes(REFINER, batch, draft_steps, SCALES, BF16, CUDA, PLAIN, SAMPLING)
    together = sum(b.weights for b in found.values()) + max(b.cache + b.activations for b in found.values())
    return {stage: b.total for stage, b in found.items()} | {"together": together}


def name_of(draft_steps: int | None) -> str:
    return "plain VAR-d30" if draft_steps is None else f"N = {draft_steps}"


def short(value: float) -> str:
    """Three significant digits, and all those before the point."""
    digits = 2 if 0 < value < 9.995 else 1 if 0 < value < 99.95 else 0
    return f"{value:,.{digits}f}"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(title: str, columns: Sequence[str], rows: Iterable[str]) -> str:
    return "\n".join([f"### {title}", "", row(columns), row(["---"] * len(columns)), *rows])


def speed_tables() -> str:
    """Tables of cards, of the paper's share, of images a second, milliseconds and work."""
    cards = [row([c.name, f"{c.tflops:g}", f"{c.gbps:,g}", f"{c.gigabytes:g}", c.source]) for c in CARDS]
    speed, seconds, work = [], [], []
    for draft_steps, batch in CELLS:
        head, forwards = [name_of(draft_steps), str(batch)], stages(draft_steps, batch).values()
        both = [[images_per_s(draft_steps, batch, card, decode) for decode in (False, True)] for card in CARDS]
        speed.append(row([*head, *(f"{short(without)} ({short(within)})" for without, within in both)]))
        times = [[short(stage_roofline(stage, card) * 1e3) for stage in forwards] for card in CARDS]
        seconds.append(row([*head, *(" + ".join(each) for each in times)]))
        sums = [value for w in forwards for value in (sum(f.flops for f in w) / 1e12, sum(f.bytes for f in w) / 1e9)]
        work.append(row([*head, *map(short, sums)]))
    paper = []
    for draft_steps, (measured, _) in PAPER_SPEED.items():
        bound = images_per_s(draft_steps, PAPER_BATCH, PAPER_CARD, with_decode=False)
        paper.append(row([name_of(draft_steps), f"{measured:.2f}", short(bound), f"{measured / bound:.2f}"]))
    columns = ["setting", "batch", *(card.name for card in CARDS)]
    units = [f"{stage} {unit}" for stage in ("draft", "refine", "decode") for unit in ("TFLOP", "GB")]
    return "\n\n".join(
        [
            table("Cards", ["card", "dense bfloat16 TFLOP/s", "memory GB/s", "memory GB", "source"], cards),
            table(
                "The paper beside the roofline (L20, batch 64)",
                ["setting", "paper images/s", "roofline", "share"],
                paper,
            ),
            table("Images a second at the most, and in brackets with VQVAE decode", columns, speed),
            table("Milliseconds of a batch at the least: draft + refine + VQVAE decode", columns, seconds),
            table("Work and bytes moved, of a batch", [*columns[:2], *units], work),
        ]
    )


def memory_row(draft_steps: int | None, batch: int) -> str:
    """Row of a setting: its GB, and the cards on which all of it fits."""
    taken = device_bytes(draft_steps, batch)
    fits = [card.name for card in CARDS if taken["together"] <= card.gigabytes * 1e9]
    gigabytes = [short(taken.get(stage, 0) / 1e9) for stage in ("draft", "refine", "decode", "together")]
    return row([name_of(draft_steps), str(batch), *gigabytes, "all" if len(fits) == len(CARDS) else ", ".join(fits)])


def tables() -> str:
    """The tables of docs/GPU.md, in Markdown. The last one takes up to a minute."""
    columns = ["setting", "batch", "draft", "refine", "decode", "all in one process", "fits on"]
    memory = [memory_row(*cell) for cell in CELLS]
    return speed_tables() + "\n\n" + table("Device memory in GB: weights, KV cache and activations", columns, memory)


if __name__ == "__main__":
    print(tables())
