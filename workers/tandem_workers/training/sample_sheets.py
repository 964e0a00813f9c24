"""Sheets of images by the average of the weights, drawn beside a training that goes on."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import cast

import numpy as np
import ray
import torch
from PIL import Image
from ray.exceptions import RayError

from tandem.collaborative import decode
from tandem.config import SamplingConfig, VarConfig
from tandem.errors import TandemError, one_line
from tandem.images import contact_sheet
from tandem.sampling import uniforms
from tandem.scales import Decode
from tandem.training.carried import Weights
from tandem.training.start import loaded_var
from tandem_workers.stages.refiner import to_uint8
from tandem_workers.storage.store import Store
from tandem_workers.training.checkpoint_files import read_average

FOLDER = "samples"
COLUMNS, ROWS = 8, 4
GUIDED = SamplingConfig(cfg=3.0, top_k=0, top_p=0.9, temperatures=(1.0,))


@dataclass(frozen=True)
class Sampler:
    """How a sheet is drawn.

    Attributes:
        config: of the transformer.
        vqvae: makes pixels.
        captions: of the labels, in label order; None: numbers.
        stop: scales that the transformer makes; pictures of fewer than all are blurred.
        sampling: of the images.
    """

    config: VarConfig
    vqvae: Weights
    captions: tuple[str, ...] | None
    stop: int
    sampling: SamplingConfig = GUIDED

    def labels(self) -> list[int]:
        """A cell each: classes evenly spread, or all of them in turn."""
        cells, classes = COLUMNS * ROWS, self.config.num_classes
        return [i * classes // cells if classes > cells else i % classes for i in range(cells)]

    def draw(self, store: Store) -> tuple[int, bytes]:
        """Step of the newest checkpoint, and a PNG of images by its average. OutputError if there is none."""
        step, average = read_average(store)
        var, vqvae = loaded_var(self.config, average).eval(), self.vqvae.vqvae(torch.device("cpu")).eval()
        labels = self.labels()
        noise_BL = uniforms(0, np.arange(len(labels)), self.config.pyramid.num_tokens)
        with torch.inference_mode():
            made = Decode.of(
                var, vqvae.quantize, torch.tensor(labels), noise_BL, noise_BL[:, :0], self.stop, self.sampling
            ).tokens()
            pixels = to_uint8(decode(vqvae, made))
        captions = [self.captions[label] if self.captions else str(label) for label in labels]
        out = io.BytesIO()
        contact_sheet([Image.fromarray(image) for image in pixels], captions, COLUMNS).save(out, "PNG")
        return step, out.getvalue()


def draw_into(store: Store, sampler: Sampler) -> str | None:
    """Put a sheet into the store; returns what went wrong, if anything did."""
    torch.set_num_threads(1)
    try:
        step, png = sampler.draw(store)
        store.replace(f"{FOLDER}/{step:08d}.png", png)
    except TandemError as error:
        return str(error)
    except Exception as error:  # a sheet is no reason to end a training
        return one_line(error)
    return None


class SampleSheets:
    """Draws a sheet every `every` steps, in a task of Ray, of the newest checkpoint at that time."""

    def __init__(self, store: Store, sampler: Sampler | None, every: int, say: Callable[[str], None]) -> None:
        self.store, self.every, self.say = store, every, say
        self.sampler = None if sampler is None else ray.put(sampler)
        self.next: int | None = None
        self.pending: list[ray.ObjectRef] = []

    def __enter__(self) -> SampleSheets:
        return self

    def note(self, step: int) -> None:
        """The run has come to a step."""
        if self.sampler is None:
            return
        if self.next is None:
            self.next = (step // self.every + 1) * self.every
        if step > self.next:  # the checkpoint of that step is there
            self.next = (step // self.every + 1) * self.every
            self.start()

    def start(self) -> None:
        assert self.sampler is not None
        task = ray.remote(draw_into).options(num_cpus=0, max_retries=0)
        self.pending.append(task.remote(self.store, self.sampler))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Draw the last sheet where the run came to its end, and wait for all."""
        if self.sampler is None or error is not None:
            return
        self.start()
        for sheet in self.pending:
            if problem := problem_of(sheet):
                self.say(f"no sheet of samples: {problem}")


def problem_of(sheet: ray.ObjectRef) -> str | None:
    """What went wrong with a sheet, if anything did, even if its process died; waits for it."""
    try:
        return cast("str | None", ray.get(sheet))
    except RayError as error:
        return one_line(error)
