"""Manifest entries and the card say how each stage of a shard ran."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from support.sample_shards import CLASS_NAMES, ENTRY, PLAN, PROVENANCE, encoded_shard, finished, sample_format
from support.stage_inputs import rows, settings, with_room_for
from tandem import collaborative
from tandem.graphs import Graphs
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.ran import Ran, describe_differences
from tandem_workers.dataset.shards import PixelShard, ShardPlan
from tandem_workers.stages import refiner
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.encoder import ImageEncoder
from tandem_workers.stages.ray_data import from_row, to_row
from tandem_workers.stages.refiner import Refiner
from tandem_workers.storage.places import open_store

CARD = Ran("NVIDIA H100", "bfloat16", "fused", True, 64)
ON_CPU = Ran("cpu", "float32", "plain", False, 3)


def give_up(*_: object) -> None:
    raise RuntimeError("cannot be captured")


def test_an_entry_says_what_each_stage_ran_with(models, tmp_path):
    """After a way between actors, in a bfloat16 job whose VQVAE computes in what this CPU multiplies."""
    decoding = settings(dtype="bfloat16")
    drafter, refiner_ = Drafter(models, decoding).load(), Refiner(models, decoding).load()
    pixels = from_row(to_row(refiner_(drafter(rows(0, 4))), []), PixelShard)[0]
    shard = ImageEncoder("png", 90, PROVENANCE, CLASS_NAMES)(pixels)
    store = open_store(str(tmp_path / "out"))
    store_shard(store, Manifest(store, 0), shard, sample_format(), ShardPlan(4, 4))
    written = json.loads(store.read("manifest/00000.json"))["ran"]
    assert written["draft"] == written["refine"] == asdict(replace(ON_CPU, dtype="bfloat16"))
    assert written["decode"] == asdict(replace(ON_CPU, dtype=written["decode"]["dtype"]))
    assert Manifest(store, 0).entry(0).ran == shard.ran


def test_kernels_that_some_parts_lack_and_graphs_that_were_given_up_show(models):
    stage = Refiner(models, settings()).load()
    graphs = stage.refiner.graphs = Graphs(give_up)
    stage.vqvae.graphs = Graphs(give_up)
    stage.vqvae.fused = stage.vqvae.decoder
    assert stage.ran["refine"] == replace(ON_CPU, graphs=True)
    assert stage.ran["decode"] == replace(ON_CPU, graphs=True, kernels="partly fused")
    with pytest.warns(UserWarning, match="cuda-graphs: RuntimeError: cannot be captured"):
        shard = stage(stage_input := Drafter(models, settings()).load()(rows(0, 9)))
    assert len(stage_input) == 9 and not graphs.in_use
    assert [shard.ran[name].graphs for name in ("draft", "refine", "decode")] == [False, False, False]
    assert Ran.of("cpu", torch.float32, [stage, stage], None, 3).kernels == "fused"


def test_a_batch_that_was_halved_shows(models, monkeypatch):
    prefixes = Drafter(models, settings(batch=4)).load()(rows(0, 4))
    monkeypatch.setattr(refiner, "decode", with_room_for(2, collaborative.decode))
    with pytest.warns(UserWarning, match="out of memory"):
        shard = Refiner(models, settings(batch=4)).load()(prefixes)
    assert {stage: ran.batch for stage, ran in shard.ran.items()} == {"draft": 4, "refine": 4, "decode": 2}


def test_entries_of_older_versions_say_nothing_and_damaged_ones_are_refused():
    assert ManifestEntry.from_json(json.dumps(ENTRY).encode()).ran == {}
    good = asdict(CARD)
    for wrong in ({"batch": "64"}, {"graphs": 1}, {"device": None}, {"more": 1}):
        data = json.dumps(ENTRY | {"ran": {"draft": good | wrong}}).encode()
        with pytest.raises((ValueError, TypeError)):
            ManifestEntry.from_json(data)
    data = json.dumps(ENTRY | {"ran": {"draft": good}}).encode()
    assert ManifestEntry.from_json(data).ran == {"draft": CARD}


def test_stages_that_ran_alike_are_no_news():
    assert describe_differences([]) == describe_differences([{}, {}]) == ""
    assert describe_differences([{"draft": CARD, "refine": ON_CPU}] * 3) == ""


@pytest.mark.parametrize("ran", [{"draft": CARD}, {}], ids=["resumed elsewhere", "begun by an older version"])
def test_the_card_says_in_one_line_that_shards_differ(tmp_path, ran):
    shards = [encoded_shard(shard, PLAN) for shard in range(PLAN.num_shards)]
    for shard in shards:
        shard.ran = {"draft": ON_CPU}
    alike = finished(tmp_path / "alike", sample_format(), shards, PLAN)
    assert "Shards differ" not in alike.read("README.md").decode()
    shards[1].ran = ran
    card = finished(tmp_path / "mixed", sample_format(), shards, PLAN).read("README.md").decode()
    (line,) = [line for line in card.splitlines() if line.startswith("Shards differ")]
    other = "on NVIDIA H100 (bfloat16, fused kernels, CUDA graphs, batches of 64)" if ran else "not recorded"
    assert f"1 of 3 shards {other}" in line
    assert "2 of 3 shards on cpu (float32, plain kernels, batches of 3)" in line
