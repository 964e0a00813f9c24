"""Blocks compiled by torch.compile. Where that fails they are as they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tandem.blocks import Block
from tandem.errors import TandemWarning
from tandem.memory import is_out_of_memory

# Versions of one function in a process: models, dtypes, and shapes of one token, of many, of a last layer
VERSIONS = 64


def compile_blocks(blocks: Sequence[Block]) -> None:
    """Let the blocks of a model compute what is before and after attention by compiled code, one for all layers.

    Attention stays outside: what it reads and where differs from layer to layer and grows with the scales.
    """
    compiler = Compiler()
    before, after = (compiler.compiled(half) for half in Block.halves)
    for block in blocks:
        block.halves = before, after


class Compiler:
    """Compiles functions without side effects when they are first called; sizes other than 1 may then change.

    With the first failure, be it for want of a C++ compiler or because an operator cannot be compiled, it warns, and
    all functions of this compiler are plain from then on.
    """

    def __init__(self) -> None:
        self.works = True

    def compiled(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        fused = torch.compile(plain, fullgraph=True, dynamic=True)

        def call(*args: Any) -> Any:
            if not self.works:
                return plain(*args)
            try:
                with torch._dynamo.config.patch(cache_size_limit=VERSIONS):  # which is one thread's
                    return fused(*args)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self.works = False
                warnings.warn(f"compile: {told(error)}; going on without it", TandemWarning, stacklevel=2)
                return plain(*args)

        return call


def told(error: Exception) -> str:
    """An error in one line."""
    first = next((line.strip(" :") for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
