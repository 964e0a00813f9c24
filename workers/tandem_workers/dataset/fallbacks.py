"""Warnings of an actor, and which of its stages do not run as asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tandem.errors import FallbackWarning, TandemWarning


@dataclass(frozen=True)
class Fallback:
    """A stage of a replica that does not run as asked, and why."""

    stage: str
    replica: str
    reason: str


class Fallbacks:
    """Those of one replica. A warning comes while a stage loads or works, and belongs to it afterwards."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.reasons: list[str] = []  # whose stage is still loading or at work
        self.found: dict[Fallback, None] = {}  # in their order

    def attribute(self, stage: str) -> None:
        """What has come since the last call is of this stage."""
        self.found |= dict.fromkeys(Fallback(stage, self.replica, reason) for reason in self.reasons)
        self.reasons.clear()


def keep_warnings(on_fallback: Callable[[str], None] = lambda reason: None) -> list[str]:
    """From now on, warnings of ours in this process end in this list: nobody would see them on an actor's stderr."""
    kept: list[str] = []
    show = warnings.showwarning

    def keep(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, TandemWarning):
            show(message, category, *where, **more)
            return
        if issubclass(category, FallbackWarning):
            on_fallback(str(message))
        if str(message) not in kept:
            kept.append(str(message))

    warnings.showwarning = keep
    warnings.simplefilter("always", TandemWarning)
    return kept
