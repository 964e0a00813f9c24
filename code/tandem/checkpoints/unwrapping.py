"""Finds state dicts in files of training programs: nested in dictionaries, with prefixes of wrappers, averaged.

A part is one model's tensors, found by the one tensor that every such model has, in any nested dictionary and under
any prefix: `{'trainer': {'var_wo_ddp': ...}}` of VAR's trainer, `{'state_dict': ...}`,
`module.` of DistributedDataParallel, `_orig_mod.` of torch.compile.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tandem.errors import CheckpointError

MARKERS = {"vqvae": "encoder.conv_in.weight", "var": "word_embed.weight"}
# Parts of a name that wrappers of torch add: DataParallel and averages, torch.compile, FSDP, activation checkpoints
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
AVERAGE = re.compile(r"(^|[_.])(ema|swa|avg|averaged?|shadow)\d*([_.]|$)", re.IGNORECASE)
SCALE_MUL = re.compile(r"(blocks\.\d+\.attn\.)scale_mul\w*")
DEEPEST = 8  # levels of dictionaries
MAX_PARTS = 64  # models in one dictionary: each tensor is compared with each


@dataclass(frozen=True)
class Part:
    """One model inside a file."""

    kind: str  # "vqvae" or "var"
    name: str  # dotted keys and prefix that lead to it; "" if the file holds only its tensors
    tensors: dict[str, Tensor] = field(repr=False)
    left_out: int = 0  # other tensors, which belong to no model

    @property
    def is_average(self) -> bool:
        return AVERAGE.search(self.name) is not None

    @property
    def label(self) -> str:
        return self.name or "the file's own tensors"


def find_parts(loaded: Any) -> list[Part]:
    """Every VAR and VQVAE in a loaded file, in its order. Raises CheckpointError for a name that occurs twice."""
    return [part for keys, tensors in state_dicts(loaded) for part in split(keys, tensors)]


def state_dicts(loaded: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The dictionaries that hold tensors by name, each with the keys that lead to it."""
    seen: set[int] = set()
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), loaded)])
    while waiting:
        keys, value = waiting.popleft()
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        tensors = {name: t for name, t in value.items() if isinstance(name, str) and isinstance(t, Tensor)}
        if tensors:
            yield keys, tensors
        if len(keys) < DEEPEST:
            waiting += [((*keys, str(key)), below) for key, below in value.items()]


def split(keys: tuple[str, ...], tensors: dict[str, Tensor]) -> list[Part]:
    """The models among the tensors of one dictionary, without prefixes and wrappers."""
    found: dict[str, str] = {}  # prefix of each model -> its kind
    for name in tensors:
        for kind, marker in MARKERS.items():
            if f".{unwrapped(name)}".endswith(f".{marker}"):
                found[name[: name.rindex(marker.partition(".")[0])]] = kind
    if len(found) > MAX_PARTS:
        raise CheckpointError(f"expected at most {MAX_PARTS} models, got {len(found)}")
    members: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in found}
    for name, tensor in tensors.items():
        owners = [prefix for prefix in found if name.startswith(prefix)]
        if not owners:
            continue
        prefix = max(owners, key=len)
        clean = unwrapped(name.removeprefix(prefix))
        if clean in members[prefix]:
            raise CheckpointError(f"the tensor {clean} occurs twice, once as {name}")
        members[prefix][clean] = tensor
    left_out = len(tensors) - sum(map(len, members.values()))
    return [
        Part(kind, ".".join(filter(None, (*keys, prefix.rstrip(".")))), in_layout(members[prefix]), left_out)
        for prefix, kind in found.items()
    ]


def unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def in_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scales of heads as [1, H, 1, 1], whatever the names and order of their axes."""
    arranged = {}
    for name, tensor in tensors.items():
        if (scale := SCALE_MUL.fullmatch(name)) and sum(n != 1 for n in tensor.shape) <= 1:
            name, tensor = f"{scale[1]}scale_mul_1H11", tensor.reshape(1, -1, 1, 1)
        arranged[name] = tensor
    return arranged


def choose_part(parts: Sequence[Part], kind: str, name: str | None = None) -> Part:
    """The part of a kind: the one with that name, else the averaged weights, else the only one.

    Raises CheckpointError if the choice is ambiguous, or if there is none.
    """
    fitting = [part for part in parts if part.kind == kind and name in (None, part.name)]
    if not fitting:
        there = ", ".join(part.label for part in parts if part.kind == kind)
        raise CheckpointError(f"expected a part {name!r}, got {there}")
    best = [part for part in fitting if part.is_average] or fitting
    if len(best) > 1:
        raise CheckpointError(
            f"expected one {kind}, got {len(best)}: {', '.join(part.label for part in best)}",
            f"tandem convert FILE OUT.safetensors --part {best[0].name} extracts one of them",
        )
    return best[0]


def explain_choice(parts: Sequence[Part], chosen: Part) -> str | None:
    """A sentence that says which part was chosen; None if there was only one."""
    others = [part.label for part in parts if part.kind == chosen.kind and part is not chosen]
    if not others:
        return None
    why = "the averaged weights" if chosen.is_average else "as asked for"
    return f"{chosen.label} ({why}) of {', '.join((chosen.label, *others))}"


def entries(loaded: Any, limit: int = 5) -> str:
    """Contents of a file in words, for a message."""
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    names = [repr(key) for key in loaded]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "nothing"
