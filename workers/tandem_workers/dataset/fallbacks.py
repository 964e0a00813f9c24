"""Warnings of an actor, and which of its stages do not run as requested."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tandem.errors import FallbackWarning, TandemWarning


@dataclass(frozen=True)
class Fallback:
    """A stage of a replica that does not run as requested, and why."""

    stage: str
    replica: str
    reason: str


class Fallbacks:
    """The fallbacks of one replica. Warnings are collected while a stage loads or works, then attributed to it."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.reasons: list[str] = []  # not yet attributed to a stage
        self.found: dict[Fallback, None] = {}  # in order

    def attribute(self, stage: str) -> None:
        """Attribute the reasons since the last call to this stage."""
        self.found |= dict.fromkeys(Fallback(stage, self.replica, reason) for reason in self.reasons)
        self.reasons.clear()


def keep_warnings(on_fallback: Callable[[str], None] = lambda reason: None) -> list[str]:
    """Collect our warnings of this process in the returned list, since nobody sees an actor's stderr."""
    kept: list[str] = []
    show = warnings.showwarning

    def keep(message: Warning | str, category: type[Warning], *location: Any, **more: Any) -> None:
        if not issubclass(category, TandemWarning):
            show(message, category, *location, **more)
            return
        if issubclass(category, FallbackWarning):
            on_fallback(str(message))
        if str(message) not in kept:
            kept.append(str(message))

    warnings.showwarning = keep
    warnings.simplefilter("always", TandemWarning)
    return kept
