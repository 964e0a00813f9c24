"""Seconds per batch of every stage, with the models of one role in memory at a time."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from tandem.collaborative import decode, draft, refine
from tandem.images import Codec, Provenance, encode_image
from tandem.memory import is_out_of_memory
from tandem.prefix import Prefix
from tandem.sampling import uniforms
from tandem_cluster.profile_file import CannotTake, RoleName, StageName, StageTime
from tandem_jobs.run.progress import say
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import DTYPES, ModelSet, load_tokenizer, load_transformer
from tandem_workers.stages.refiner import to_uint8
from tandem_workers.storage.places import open_store

NO_DRAFTS = "of images from random prefixes, as this device does not draft"


@dataclass
class Timer:
    """Times stages on one device and keeps the results."""

    device: torch.device
    repeats: int
    times: list[StageTime] = field(default_factory=list)
    cannot: list[CannotTake] = field(default_factory=list)
    load_s: dict[str, float] = field(default_factory=dict)

    def measure(
        self,
        stage: StageName,
        draft_steps: int | None,
        batch: int,
        work: Callable[[], Any],
        estimated: str | None = None,
    ) -> Any:
        """Run the work once to warm up, then `repeats` times. Returns its last result."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = []
        for _ in range(self.repeats + 1):
            began = time.perf_counter()
            result = work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        found = StageTime(
            stage=stage,
            draft_steps=draft_steps,
            batch=batch,
            seconds=statistics.median(seconds[1:]),
            memory_bytes=peak,
            estimated=estimated,
        )
        self.times.append(found)
        say(f"{stage:<7}{f'N = {draft_steps}' if draft_steps else '':<8}batch {batch:<5}{found.seconds:.4f} s")
        return result

    def load(self, name: str, loader: Callable[[], Any]) -> Any:
        """Load a model and record the time."""
        began = time.perf_counter()
        model = loader()
        self.load_s[name] = max(1e-6, time.perf_counter() - began)
        return model

    def give_up(self, role: RoleName, batch: int | None, reason: str) -> None:
        """Record that the device cannot take a role, at a batch size or at all."""
        self.cannot.append(CannotTake(role=role, batch=batch, reason=reason))
        say(f"cannot {role}{f' at batch {batch}' if batch else ''}: {reason}")

    @contextmanager
    def trying(self, role: RoleName, batch: int | None) -> Iterator[None]:
        """Context manager: records out of memory as a result, and drops times of the role at this batch size."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            stages = ("draft",) if role == "draft" else ("refine", "decode")
            self.times = [t for t in self.times if t.stage not in stages or batch not in (None, t.batch)]
            self.give_up(role, batch, f"out of memory{'' if batch else ' when its models were loaded'}")
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


@dataclass(frozen=True)
class Measuring:
    """Inputs of a measurement: the models, their decode settings, and values of N."""

    models: ModelSet
    settings: DecodeSettings  # of any batch
    steps: Sequence[int]

    def noise(self, batch: int, device: torch.device) -> torch.Tensor:
        num_tokens = self.models.drafter_config.pyramid.num_tokens
        return uniforms(self.settings.seed, np.arange(batch), num_tokens).to(device)

    def labels(self, batch: int, device: torch.device) -> torch.Tensor:
        return torch.arange(batch, device=device) % self.models.drafter_config.num_classes

    def tokenizer(self, device: torch.device) -> Any:
        patch_nums = self.models.drafter_config.patch_nums
        return load_tokenizer(
            self.models.vqvae, patch_nums, DTYPES[self.settings.dtype], device, self.settings.preparation
        )

    def draft(self, timer: Timer, batches: Sequence[int]) -> dict[tuple[int, int], Prefix]:
        """Times of drafting; returns the prefixes by N and batch."""
        prefixes: dict[tuple[int, int], Prefix] = {}
        settings, device = self.settings, timer.device
        with timer.trying("draft", None):
            load = partial(load_transformer, self.models.drafter, DTYPES[settings.dtype], device, settings.preparation)
            model = timer.load("drafter", load)
            quantizer = self.tokenizer(device).quantize
            for batch in batches:
                with timer.trying("draft", batch):
                    labels, noise = self.labels(batch, device), self.noise(batch, device)
                    for n in self.steps:
                        work = partial(draft, model, quantizer, labels, noise, n, settings.sampling)
                        prefixes[n, batch] = timer.measure("draft", n, batch, work)
        return prefixes

    def refine(
        self, timer: Timer, batches: Sequence[int], prefixes: dict[tuple[int, int], Prefix]
    ) -> dict[int, np.ndarray]:
        """Times of refining and of VQVAE decode; returns the pixels by batch. Missing prefixes are random."""
        pixels: dict[int, np.ndarray] = {}
        settings, device = self.settings, timer.device
        with timer.trying("refine", None):
            load = partial(
                load_transformer, self.models.ref("refiner"), DTYPES[settings.dtype], device, settings.preparation
            )
            model = timer.load("refiner", load)
            vqvae = timer.load("vqvae", lambda: self.tokenizer(device))
            for batch in batches:
                with timer.trying("refine", batch):
                    labels, noise = self.labels(batch, device), self.noise(batch, device)
                    for n in self.steps:
                        prefix = prefixes.get((n, batch)) or self.random_prefix(n, batch)
                        work = partial(refine, model, vqvae.quantize, labels, noise, prefix, settings.sampling)
                        ids = timer.measure("refine", n, batch, work)
                    pixels[batch] = timer.measure("decode", None, batch, partial(to_pixels, vqvae, ids))
        return pixels

    def random_prefix(self, draft_steps: int, batch: int) -> Prefix:
        config = self.models.drafter_config
        shape = (batch, config.pyramid.offsets[draft_steps])
        ids = np.random.default_rng(self.settings.seed).integers(config.vocab_size, size=shape)
        return Prefix(ids.astype(np.uint16), draft_steps)

    def store(self, timer: Timer, pixels: np.ndarray, codec: Codec, quality: int, drafted: bool) -> None:
        """Times of encoding and storing a batch, on one CPU core."""
        timer = replace(timer, device=torch.device("cpu"))
        hashes = self.models.hashes
        drafter, refiner, vqvae = (hashes[role] for role in ("drafter", "refiner", "vqvae"))
        provenance = Provenance("tandem profile", drafter, refiner, vqvae, self.settings.seed, self.steps[-1])

        def encode() -> list[bytes]:
            notes = (provenance.for_image(i, 0, "class") for i in range(len(pixels)))
            return [encode_image(image, codec, quality, note) for image, note in zip(pixels, notes, strict=True)]

        data = b"".join(timer.measure("encode", None, len(pixels), encode, None if drafted else NO_DRAFTS))
        with tempfile.TemporaryDirectory() as folder:
            place, names = open_store(folder), iter(range(1_000_000))
            timer.measure("store", None, len(pixels), lambda: place.put_once(f"shards/{next(names):05d}.tar", data))


def to_pixels(vqvae: Any, ids_BL: torch.Tensor) -> np.ndarray:
    """Token ids int64 [B, L] -> uint8 [B, H, W, 3]."""
    return to_uint8(decode(vqvae, ids_BL))
