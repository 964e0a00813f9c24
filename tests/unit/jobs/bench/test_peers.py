"""Other generators beside ours: their shapes, and that each part is multiplied by its calls."""

import json
from dataclasses import replace

import pytest
import torch

from tandem.errors import InputError
from tandem_jobs.bench import decode_timing, peer_timing, peers
from tandem_jobs.bench.bench_card import BenchCardSpec
from tandem_jobs.bench.bench_card import run as run_card
from tandem_jobs.bench.peer_timing import Ours, generation_s, time_peer
from tandem_jobs.bench.peers import PEERS, Part, check_peers
from tandem_jobs.cli import main

SMALL = {
    "dit-xl2": {"depth": 1, "width": 32, "heads": 2, "side": 8},
    "llamagen-xxl": {"depth": 1, "width": 32, "heads": 2, "hidden": 64, "vocabulary": 64},
    "aim-xl": {"depth": 1, "width": 32, "state": 4, "vocabulary": 64},
    "mar-b": {"depth": 1, "width": 32, "heads": 2, "tokens": 16, "buffer": 4}
    | {"mlp_width": 32, "mlp_depth": 1, "denoising": 10},
}
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture
def small(monkeypatch):
    found = {name: replace(peer, shape=SMALL[name]) for name, peer in PEERS.items()}
    for module in (peers, peer_timing):
        monkeypatch.setattr(module, "PEERS", found)
    monkeypatch.setattr(decode_timing, "PEAK_SHAPE", (64, 64, 64))
    threads = torch.get_num_threads()
    yield found
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "published", "near"),
    [("dit-xl2", 675, 0.12), ("llamagen-xxl", 1400, 0.01), ("aim-xl", 763, 0.03), ("mar-b", 208, 0.02)],
)
def test_networks_have_the_published_sizes(name, published, near):
    """diffusers' DiT embeds class and time anew in every block; AiM's modulation, 3 % of its weights, is left out."""
    with torch.device("meta"):
        network = PEERS[name].network(PEERS[name].shape)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(published, rel=near)


def test_all_peers_decode_every_token_or_step(small):
    calls = {name: [part.times for part in peer.parts(2, CPU)] for name, peer in small.items()}
    assert calls["dit-xl2"] == [50] and calls["llamagen-xxl"] == [576] and calls["aim-xl"] == [256]
    assert calls["mar-b"] == [25, 25, 25, 25, 1000]
    with torch.inference_mode():
        backbone = [part.prepare()() for part in small["mar-b"].parts(2, CPU)[:4]]
    assert {tuple(x.shape) for x in backbone} == {(4, 4 + 16, 32)}  # buffer and all tokens, guided rows


def test_a_generation_is_each_part_as_often_as_it_is_called(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(peer_timing.time, "perf_counter", lambda: now[0])

    def takes(seconds: float):
        def call() -> None:
            now[0] += seconds

        def prepare():
            now[0] += 100  # is not counted
            return call

        return prepare

    assert generation_s([Part(10, takes(0.5)), Part(2, takes(3.0))], torch.device("cpu")) == pytest.approx(11.0)
    peer = replace(PEERS["mar-b"], network=lambda _: torch.nn.Identity(), calls=lambda *_: [Part(4, takes(0.5))])
    monkeypatch.setattr(peer_timing, "PEERS", {"mar-b": peer})
    row = time_peer("mar-b", 8, CPU, Ours("N = 8", lambda: 0.25), repeats=2)
    assert (row["images_per_s"]["value"], row["our_images_per_s"]["value"]) == pytest.approx((4.0, 32.0))
    assert row["ours_times_as_fast"] == {"value": 8.0, "low": 8.0, "high": 8.0}


def test_bench_decode_has_a_row_for_each_peer(small, tiny_models, capsys):
    models = [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", tiny_models[role])]
    flags = ["--batches", "2", "--repeats", "1", "--threads", "1", "--draft-steps", "2"]
    flags += ["--peers", "dit-xl2,aim-xl,mar-b"]
    assert main(["bench", "decode", *models, *flags]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out.splitlines()[-1])["peers"]
    assert [row["title"] for row in rows] == ["DiT-XL/2", "AiM-XL", "MAR-B"]
    assert all(row["setting"] == "N = 2" and row["batch"] == 2 and row["images_per_s"]["value"] > 0 for row in rows)
    assert "other generators, random weights" in said.err


def test_bench_card_has_them_too(small):
    found = run_card(BenchCardSpec(size="tiny", only=("peers",), peers=("llamagen-xxl",), repeats=1))
    assert {row["title"] for row in found["peers"]["rows"]} == {"LlamaGen-XXL"}
    assert "wrong" not in found["peers"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    check_peers(("mar-b",))
    with pytest.raises(InputError, match="expected the package transformers, got none") as caught:
        check_peers(("aim-xl",))
    assert caught.value.hint == "pip install 'tandem-code[peers]'"
