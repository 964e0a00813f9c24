"""`--batch auto`: the largest batch that fits the smallest device, from counted bytes, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tandem.assembly import Preparation
from tandem.collaborative import of_refiner
from tandem.config import SamplingConfig, VarConfig
from tandem.counting.batch_fit import Stage, device_bytes, largest_batch
from tandem.counting.costs import Bytes, var_bytes, vqvae_bytes
from tandem.errors import InputError
from tandem_cluster.devices import has_real_gpus, memory_of_cluster
from tandem_cluster.profile_file import StageName
from tandem_jobs.labels.settings_columns import most_demanding
from tandem_jobs.options.options import JobOptions, MeasuredOptions
from tandem_jobs.run.decode_choices import choose_dtype
from tandem_jobs.run.progress import say
from tandem_jobs.run.shard_size import SHARDS_AIMED_AT
from tandem_workers.dataset.job_record import read_identity
from tandem_workers.dataset.row_settings import SAMPLING_SETTINGS
from tandem_workers.models.model_set import DTYPES, ModelSet
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

# Stages whose models share a device
DRAFTERS: tuple[StageName, ...] = ("draft",)
REFINERS: tuple[StageName, ...] = ("refine", "decode")
COLOCATED = (DRAFTERS + REFINERS,)
SPLIT = (DRAFTERS, REFINERS)
MAX_BATCH = 256  # larger batches are no faster on any published card, by the roofline in docs/GPU.md
GPU_SHARE = 0.9  # of a card's memory; CUDA context, library workspaces and fragmentation take the rest
HOST_SHARE = 0.5  # of a machine's memory; Ray's object store takes 0.3, Python and libraries the rest


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that a replica may use on the smallest device."""

    num_bytes: int
    on_gpu: bool
    description: str


@dataclass(frozen=True)
class Workload:
    """What the memory of a batch depends on, besides the options."""

    models: ModelSet
    devices: Sequence[Sequence[str]]
    draft_steps: int
    sampling: SamplingConfig
    replicas: int  # which share the memory of a machine without GPUs
    on_cpus: bool = False  # even if there are GPUs
    awaits_gpus: bool = False  # none is here yet; those to come are real
    row_settings: tuple[str, ...] = ()  # settings that differ from row to row
    row_draft_steps: tuple[int, ...] = ()  # every N in the rows, if draft_steps is one of these


def choose_batch(
    options: JobOptions, store: Store, workload: Workload, num_rows: int, shard_size: int | None = None
) -> int:
    """The requested batch. `auto`: the batch of the job that --out already holds, else the largest that fits all
    devices, up to MAX_BATCH, and leaves SHARDS_AIMED_AT shards or divides shards of a given size evenly.

    Raises InputError if a single image does not fit.
    """
    if options.batch != "auto":
        return options.batch
    if (running_batch := batch_of_job(options, store)) is not None:
        say(f"batch auto: {running_batch}, as in the job that is resumed")
        return running_batch
    memory = find_budget(options, workload)
    stages = all_stages(options, workload, memory.on_gpu)
    graphs = Preparation.of(options, memory.on_gpu).cuda_graphs

    def most_bytes(batch: int) -> int:
        each = ([stages[name] for name in names] for names in workload.devices)
        return max(device_bytes(shared, batch, not memory.on_gpu, graphs) for shared in each)

    most = max(1, min(shard_size or num_rows // SHARDS_AIMED_AT, MAX_BATCH))
    batch = largest_batch(most_bytes, memory.num_bytes, most)
    if batch == 0:
        raise InputError(
            f"--batch auto: expected {most_bytes(1) / 1e9:.2f} GB for a single image, got {memory.description}",
            "--placement split puts fewer models on a device, --fold-adaln moves a third of their weights to the host",
        )
    if shard_size:  # the same number of batches a shard, of equal size, so that few rows are padded
        batch = math.ceil(shard_size / math.ceil(shard_size / batch))
    limit = "all that this job can use" if batch == most else "the largest that fits"
    say(f"batch auto: {batch}, {limit}; it takes {most_bytes(batch) / 1e9:.2f} GB, there are {memory.description}")
    return batch


def batch_of_job(options: JobOptions, store: Store) -> int | None:
    """Batch of the job to be resumed in this store, if there is one."""
    if options.overwrite or not store.exists(layout.JOB):
        return None
    return read_identity(store).batch


def find_budget(options: JobOptions, workload: Workload) -> MemoryBudget:
    """Memory for a replica: as given by the user, or a share of the smallest node's."""
    if options.device_memory_gb is not None:
        on_gpu = not workload.on_cpus and (workload.awaits_gpus or has_real_gpus(options.address))
        description = f"{options.device_memory_gb:g} GB (--device-memory-gb)"
        return MemoryBudget(int(options.device_memory_gb * 1e9), on_gpu, description)
    memory = memory_of_cluster(options.address)
    if memory.cards and not workload.on_cpus:
        card = min(memory.cards)
        return MemoryBudget(int(GPU_SHARE * card), True, f"{GPU_SHARE} of the smallest GPU's {card / 1e9:.1f} GB")
    if workload.awaits_gpus:
        raise InputError(
            "--batch auto: expected --device-memory-gb, as no GPU has joined yet whose memory could be read"
        )
    num_bytes = int(HOST_SHARE * memory.host / workload.replicas)
    share = f"{HOST_SHARE} of {memory.host / 1e9:.1f} GB, for each of {workload.replicas} replicas"
    return MemoryBudget(num_bytes, False, f"{num_bytes / 1e9:.2f} GB ({share})")


def all_stages(options: JobOptions | MeasuredOptions, workload: Workload, on_gpu: bool) -> Mapping[str, Stage]:
    """Functions that count the bytes of each stage for a batch size."""
    models, all_steps = workload.models, workload.row_draft_steps or (workload.draft_steps,)
    device, dtype = torch.device("cuda" if on_gpu else "cpu"), DTYPES[choose_dtype(options.dtype, on_gpu)]
    preparation, scales = Preparation.of(options, on_gpu), models.drafter_config.pyramid.num_scales
    coarse, fine = models.drafter_config, models.refiner_config or models.drafter_config
    tokenizer = replace(models.vqvae_config, patch_nums=coarse.patch_nums)

    def most(config: VarConfig, batch: int, start: int | None, stop: int | None) -> Bytes:
        """The largest bytes over all N in use."""
        sampling = sampling_to_count(workload, batch)
        if start is None:
            sampling = of_refiner(sampling)
        spans = [(n if start is None else start, n if stop is None else stop) for n in all_steps]
        counted = [var_bytes(config, batch, *span, dtype, device, preparation, sampling) for span in spans]
        return max(counted, key=lambda each: each.total)

    return {
        "draft": lambda batch: most(coarse, batch, 0, None),
        "refine": lambda batch: most(fine, batch, None, scales),
        "decode": lambda batch: vqvae_bytes(tokenizer, batch, dtype, device),
    }


def sampling_to_count(workload: Workload, batch: int) -> SamplingConfig | Sequence[SamplingConfig]:
    """The settings of the batch that takes the most memory: if rows differ, the logits of a group are copied too."""
    if not set(workload.row_settings) & set(SAMPLING_SETTINGS):
        return workload.sampling
    worst = most_demanding(workload.sampling, workload.row_settings)
    other = replace(worst, temperatures=(worst.temperature(0) + 1,))
    return [*[worst] * (batch - 1), other]
