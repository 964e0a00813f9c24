"""How the stages of a shard ran: devices, dtypes, kernels, graphs and batch sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tandem.graphs import Graphs

TYPES = {"device": str, "dtype": str, "kernels": str, "graphs": bool, "batch": int}


@dataclass(frozen=True)
class Ran:
    """How one stage of a shard ran, which may differ from the job's request.

    Attributes:
        device: "cpu", or the name of the card.
        dtype: of weights and activations.
        kernels: "fused", "plain", or "partly fused" if some failed their test.
        graphs: whether CUDA graphs were in use.
        batch: images at once at the end of the shard, fewer than requested if memory ran out.
    """

    device: str
    dtype: str
    kernels: str
    graphs: bool
    batch: int

    @classmethod
    def of(cls, device: str, dtype: object, fused: Sequence[object], graphs: Graphs | None, batch: int) -> Ran:
        """`fused`: the fused kernels of each part of the stage, None for plain ones."""
        used = sum(part is not None for part in fused)
        kernels = "plain" if not used else "fused" if used == len(fused) else "partly fused"
        in_use = graphs is not None and graphs.in_use
        return cls(device, str(dtype).removeprefix("torch."), kernels, in_use, batch)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Ran:
        """From JSON. TypeError or ValueError for other values."""
        if wrong := [name for name, kind in TYPES.items() if type(values.get(name)) is not kind]:
            raise ValueError(f"expected {wrong[0]} as {TYPES[wrong[0]].__name__}, got {values.get(wrong[0])!r:.40}")
        return cls(**values)

    def __str__(self) -> str:
        graphs = ", CUDA graphs" if self.graphs else ""
        return f"on {self.device} ({self.dtype}, {self.kernels} kernels{graphs}, batches of {self.batch})"


def describe_differences(shards: Collection[Mapping[str, Ran]]) -> str:
    """One line on stages that ran differently for some shards; "" if there are none, or nothing is recorded."""
    sentences = []
    for stage in dict.fromkeys(stage for ran in shards for stage in ran):
        counts = Counter(str(ran.get(stage, "not recorded")) for ran in shards)
        if len(counts) > 1:
            ways = "; ".join(f"{count} of {len(shards)} shards {way}" for way, count in sorted(counts.items()))
            sentences.append(f"{stage}: {ways}.")
    return " ".join(["Shards differ in what made them.", *sentences]) if sentences else ""
