"""Each image exactly once: the commit protocol, by the real code, in seeded interleavings of jobs, faults and crashes.

TANDEM_INTERLEAVINGS=50000 tries that many. A violation names its interleaving and the operations that led to it.
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from support.protocol_model import Violation
from support.protocol_scenarios import interleave
from tandem_workers.dataset import closing, commit, drafts
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.storage import layout

NUMBER = int(os.environ.get("TANDEM_INTERLEAVINGS", "2000"))
PARTS = 4  # that several processes may take
BOUNDS = [part * NUMBER // PARTS for part in range(PARTS + 1)]


@pytest.mark.parametrize(("first", "end"), pairwise(BOUNDS))
def test_whatever_comes_between_nothing_is_lost_mixed_or_said_wrongly(first, end):
    outcomes: Counter[str] = Counter()
    for number in range(first, end):
        model = interleave(number)
        outcomes.update(type(command.outcome).__name__ for command in model.commands)
        outcomes["unclosed"] += model.unclosed
    assert outcomes["dict"] > outcomes["OutputError"] > outcomes["Killed"] > 0
    assert outcomes["unclosed"] <= max(2, (end - first) / 200)  # by a replaced job that stood still meanwhile
    print(f"{end - first} interleavings: {dict(outcomes)}")


tag, is_closed = layout.tag, closing.is_closed


class NoSecondLook:
    """Closing as it was: who has written is done."""

    def __init__(self) -> None:
        self.seen: list[Manifest] = []

    def __call__(self, manifest: Manifest, *more: Any) -> bool:
        if any(manifest is each for each in self.seen):
            return True
        self.seen.append(manifest)
        return is_closed(manifest, *more)


MUTATIONS = {
    "no epoch in names": (layout, "tag", lambda epoch, content="": tag(0, content)),
    "no second look": (closing, "is_closed", NoSecondLook()),
    "what stands is not read": (commit, "why_not_ours", lambda *_: ""),
    "what a listing lacks is not asked for": (Manifest, "_standing", lambda *_, **more: frozenset()),
    "drafts of any epoch": (drafts, "Manifest", lambda store, epoch: Manifest(store)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_model_finds_what_the_protocol_is_for(mutation, monkeypatch):
    monkeypatch.setattr(*MUTATIONS[mutation])
    with pytest.raises(Violation):
        list(map(interleave, range(600)))
