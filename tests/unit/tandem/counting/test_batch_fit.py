"""The largest batch that fits: by any rule that grows, by real counts, and as `--batch auto` chooses it."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.tiny_models import PATCH_NUMS, tiny_var
from tandem.assembly import Preparation
from tandem.config import VAR_PRESETS, VQVAE_PRESET, SamplingConfig
from tandem.counting.batch_fit import device_bytes, largest_batch
from tandem.counting.costs import Bytes, peak_bytes, var_bytes
from tandem.errors import InputError, PlacementError
from tandem_cluster.devices import Memory
from tandem_jobs.run import batch_size as auto
from tandem_workers.storage import layout

CPU, CUDA, BF16 = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
GB = 10**9


@given(
    fixed=st.integers(0, 1000),
    steps=st.lists(st.integers(0, 50), min_size=40, max_size=40),
    num_bytes=st.integers(0, 2000),
    most=st.integers(1, 40),
)
def test_it_is_the_largest_whatever_the_rule(fixed, steps, num_bytes, most):
    def bytes_of(batch):
        return fixed + sum(steps[:batch])

    fitting = [batch for batch in range(1, most + 1) if bytes_of(batch) <= num_bytes]
    assert largest_batch(bytes_of, num_bytes, most) == max(fitting, default=0)


def test_a_straight_line_takes_few_counts():
    asked = []

    def bytes_of(batch):
        asked.append(batch)
        return 5_000 + 37 * batch

    assert largest_batch(bytes_of, 12_345, 10_000) == 198
    assert len(asked) <= 8


@pytest.mark.parametrize("preparation", [Preparation(), Preparation(fold_adaln=True)], ids=["plain", "fold_adaln"])
def test_two_layers_tell_the_bytes_of_five(preparation, monkeypatch):
    """Counted in the whole model: `replace` is kept from making it shallower."""
    config = tiny_var(5, seed=0).config
    args = config, 3, 0, len(PATCH_NUMS), torch.float32, CPU, preparation, SamplingConfig(top_k=12)
    by_two = var_bytes(*args)
    monkeypatch.setattr("tandem.counting.costs.replace", lambda config, **_: config)
    assert var_bytes(*args) == by_two


def stages_on(card: torch.device):
    sampling = SamplingConfig()
    return [
        lambda batch: var_bytes(VAR_PRESETS["d30"], batch, 0, 8, BF16, card, Preparation(), sampling),
        lambda batch: var_bytes(VAR_PRESETS["d16"], batch, 8, 10, BF16, card, Preparation(), sampling),
    ]


def test_the_published_transformers_on_a_card_of_24_gb():
    def bytes_of(batch):
        return device_bytes(stages_on(CUDA), batch)

    batch = largest_batch(bytes_of, 24 * GB, 256)
    assert 1 < batch < 256
    assert bytes_of(batch) <= 24 * GB < bytes_of(batch + 1)


def options(**values):
    plain = {"batch": "auto", "overwrite": False, "address": None, "device_memory_gb": None, "dtype": "auto"}
    return SimpleNamespace(**plain | {field.name: field.default for field in fields(Preparation)} | values)


def store(job: bytes | None = None):
    return SimpleNamespace(exists=lambda path: job is not None and path == layout.JOB, read=lambda path: job)


@pytest.fixture
def workload():
    drafter, refiner = (
        replace(VAR_PRESETS["d16"], depth=depth, num_heads=2, patch_nums=PATCH_NUMS) for depth in (3, 2)
    )
    vqvae = replace(VQVAE_PRESET, base_channels=32, patch_nums=PATCH_NUMS)
    models = SimpleNamespace(drafter_config=drafter, refiner_config=refiner, vqvae_config=vqvae)
    return auto.Workload(models, auto.COLOCATED, 2, SamplingConfig(), replicas=2)


def test_a_number_is_taken_as_it_is(workload):
    assert auto.choose_batch(options(batch=7), store(), workload, 100) == 7


def test_auto_goes_on_with_the_batch_of_the_job(workload, capsys):
    begun = store(b'{"identity": {"decoding": {"batch": 13}}, "info": {}}')
    assert auto.choose_batch(options(), begun, workload, 100) == 13
    assert "13, as in the job that is resumed" in capsys.readouterr().err


def test_auto_fills_the_smallest_card(workload, monkeypatch, capsys):
    monkeypatch.setattr(auto, "memory_of_cluster", lambda address: Memory((2 * GB, GB // 4), 64 * GB))
    found = auto.choose_batch(options(), store(), workload, 32000)
    stages = list(auto.all_stages(options(), workload, on_gpu=True).values())
    assert device_bytes(stages, found) <= 0.9 * (GB // 4) < device_bytes(stages, found + 1)
    assert f"{found}, the largest that fits" in capsys.readouterr().err


def test_auto_shares_a_machine_without_cards_and_leaves_shards(workload, monkeypatch, capsys):
    monkeypatch.setattr(auto, "memory_of_cluster", lambda address: Memory((), 64 * GB))
    assert auto.choose_batch(options(), store(), workload, 160) == 5
    said = capsys.readouterr().err
    assert "all that this job can use" in said
    assert "for each of 2 replicas" in said


def test_processes_on_cpus_have_no_card(workload, monkeypatch):
    monkeypatch.setattr(auto, "memory_of_cluster", lambda address: Memory((80 * GB,), 64 * GB))
    memory = auto.find_budget(options(), replace(workload, on_cpus=True, replicas=4))
    assert (memory.on_gpu, memory.num_bytes) == (False, 8 * GB)


@pytest.mark.parametrize(("shard", "fits", "batch"), [(512, 256, 256), (512, 255, 171), (512, 200, 171), (7, 5, 4)])
def test_a_shard_of_given_size_is_cut_into_even_batches(workload, monkeypatch, shard, fits, batch):
    monkeypatch.setattr(auto, "largest_batch", lambda bytes_of, num_bytes, most: min(fits, most))
    monkeypatch.setattr(auto, "memory_of_cluster", lambda address: Memory((), 64 * GB))
    assert auto.choose_batch(options(), store(), workload, 10_000, shard) == batch


def test_what_is_kept_on_the_device_adds_up():
    stages = [lambda batch: Bytes(10, batch, 2 * batch, host=5), lambda batch: Bytes(20, 0, 4 * batch)]
    assert device_bytes(stages, 7) == 30 + 28
    assert device_bytes(stages, 7, on_host=True) == 30 + 28 + 5
    assert device_bytes(stages, 7, all_kept=True) == 30 + 21 + 28


def test_the_memory_that_is_given_needs_no_answer_of_the_nodes(workload, monkeypatch):
    def no_answer(address):
        raise PlacementError("the nodes did not report their memory")

    monkeypatch.setattr(auto, "memory_of_cluster", no_answer)
    memory = auto.find_budget(options(device_memory_gb=3), workload)
    assert (memory.on_gpu, memory.num_bytes) == (False, 3 * GB)


def test_one_image_has_to_fit(workload, monkeypatch):
    monkeypatch.setattr(auto, "memory_of_cluster", lambda address: Memory((), 64 * GB))
    with pytest.raises(InputError, match=r"expected 0\.\d\d GB for a single image, got 0.01 GB"):
        auto.choose_batch(options(device_memory_gb=0.01), store(), workload, 100)


def test_gpus_that_are_to_come_cannot_be_asked(workload, monkeypatch):
    monkeypatch.setattr(auto, "memory_of_cluster", lambda address: Memory((), 64 * GB))
    with pytest.raises(InputError, match="expected --device-memory-gb"):
        auto.choose_batch(options(), store(), replace(workload, awaits_gpus=True), 100)


def test_peak_bytes_counts_what_is_alive_at_once():
    def work():
        first = torch.empty(1000, dtype=torch.uint8)
        del first
        return torch.empty(600, dtype=torch.uint8), torch.empty(300, dtype=torch.uint8)

    assert peak_bytes(work) == 1000
