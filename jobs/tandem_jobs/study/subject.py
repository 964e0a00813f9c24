"""The models that a study looks at, and the images that they make: token ids are made once and kept in a file."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tandem.collaborative import decode
from tandem.config import Pyramid, SamplingConfig, VarConfig, to_dict
from tandem.graphs import release_graphs
from tandem.prefix import to_tokens
from tandem.sampling import uniforms
from tandem.scales import Decode
from tandem.var import Var
from tandem.vqvae import Vqvae
from tandem_jobs.run.decode_choices import (
    choose_draft_steps,
    choose_dtype,
    choose_preparation,
    choose_sampling,
    warn_if_unsuited,
)
from tandem_jobs.run.progress import say
from tandem_jobs.study.kept import kept_arrays
from tandem_jobs.study.study_options import StudyOptions
from tandem_workers.models.model_set import (
    DTYPES,
    ModelRef,
    Resolved,
    check_partners,
    load_tokenizer,
    load_transformer,
    pick_device,
    resolve,
    resolve_models,
)
from tandem_workers.stages.refiner import to_uint8

PART_IMAGES = 2400  # images whose tokens, and then features, are kept together


@dataclass(frozen=True)
class Setting:
    """Which model makes which scales: (model, scale after its last) one after the other.

    Plain VAR of the drafter is (("drafter", K),), CoDe (("drafter", N), ("refiner", K)).
    """

    name: str
    parts: tuple[tuple[str, int], ...]
    sampling: SamplingConfig | None = None  # how its tokens are drawn, if not as the study's


class Subject:
    """Drafter, refiner and VQVAE on one device. Weights are loaded when they are used."""

    def __init__(self, spec: StudyOptions, part_images: int | None = None):
        self.spec, self.part_images, self.device = spec, part_images or PART_IMAGES, pick_device()
        if spec.threads:
            torch.set_num_threads(spec.threads)
        self.models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights)
        on_gpu = self.device.type == "cuda"
        self.dtype_name = choose_dtype(spec.dtype, on_gpu)
        self.preparation = choose_preparation(spec, on_gpu, self.dtype_name)
        self.sampling = choose_sampling(spec, self.models.sampling, self.pyramid)
        self.steps = tuple(choose_draft_steps(n, self.models) for n in spec.draft_steps or range(1, self.scales))
        warn_if_unsuited(self.models, (), [self.sampling])
        self.transformers: dict[str, Var] = {}
        assert self.models.refiner_config is not None
        self.fine_tuned = dict(self.models.fine_tuned)
        self.refs: dict[str, ModelRef] = {"drafter": self.models.drafter, "refiner": self.models.ref("refiner")}
        self.configs: dict[str, VarConfig] = {
            "drafter": self.models.drafter_config,
            "refiner": self.models.refiner_config,
        }

    def of(self, images: int, seed: int) -> Subject:
        """The same models for another number of images, or another seed."""
        assert self.vqvae is not None  # loaded once for all copies
        found = copy.copy(self)
        found.spec = self.spec.model_copy(update={"images": images, "seed": seed})
        return found

    def add(self, name: str, source: str, role: Literal["drafter", "refiner"] = "refiner") -> None:
        """A further model over the same VQVAE, under a name of its own. CheckpointError if it does not fit the others.

        `source` is as for --drafter or --refiner, by `role`.
        """
        found = resolve(role, source, self.spec.random_weights)
        check_partners(Resolved(self.models.drafter, self.models.drafter_config), found)
        assert isinstance(found.config, VarConfig)
        self.refs[name], self.configs[name], self.fine_tuned[name] = found.ref, found.config, found.fine_tuned

    @property
    def pyramid(self) -> Pyramid:
        return self.models.drafter_config.pyramid

    @property
    def scales(self) -> int:
        """K."""
        return self.pyramid.num_scales

    @cached_property
    def vqvae(self) -> Vqvae:
        """In float32 whatever the transformers are: its pixels are what is measured."""
        return load_tokenizer(self.models.vqvae, self.pyramid.patch_nums, torch.float32, self.device)

    def transformer(self, role: str) -> Var:
        """The model of a role: "drafter", "refiner", or one that was added."""
        if role not in self.transformers:
            dtype = DTYPES[self.dtype_name]
            self.transformers[role] = load_transformer(self.refs[role], dtype, self.device, self.preparation)
        return self.transformers[role]

    @property
    def alone(self) -> tuple[Setting, Setting]:
        """Plain VAR of each model."""
        return Setting("refiner", (("refiner", self.scales),)), Setting("drafter", (("drafter", self.scales),))

    def code(self, draft_steps: int) -> Setting:
        """CoDe at N."""
        return Setting(f"code-{draft_steps}", (("drafter", draft_steps), ("refiner", self.scales)))

    def settings(self) -> list[Setting]:
        """The refiner alone, CoDe at every N that was asked for, the drafter alone."""
        refiner, drafter = self.alone
        return [refiner, *map(self.code, self.steps), drafter]

    def labels(self) -> NDArray[np.int64]:
        """The label of every image: int64 [n], classes in turn."""
        return self.labels_of(np.arange(self.spec.images))

    def labels_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels of images by their index, which may be that of any image."""
        return index % self.models.drafter_config.num_classes

    def sampling_of(self, setting: Setting) -> SamplingConfig:
        """How the tokens of a setting are drawn."""
        return setting.sampling or self.sampling

    def parts(self) -> list[range]:
        """The images in parts of whole batches, each kept in a file of its own: a study that was stopped makes at most
        one part again."""
        images, size = self.spec.images, -(-self.part_images // self.spec.batch) * self.spec.batch
        return [range(start, min(start + size, images)) for start in range(0, images, size)]

    def key(self, setting: Setting, part: range) -> dict[str, object]:
        """Everything that these images of a setting depend on."""
        roles = {role: self.refs[role].sha256 for role, _ in setting.parts}
        return {
            "parts": setting.parts,
            "weights_sha256": {**roles, "vqvae": self.models.vqvae.sha256},
            "sampling": to_dict(self.sampling_of(setting)),
            "dtype": self.dtype_name,
            "preparation": vars(self.preparation),
            "index": [part.start, part.stop],
            **{name: getattr(self.spec, name) for name in ("seed", "batch")},
            "threads": torch.get_num_threads(),
            "device": self.device.type,
        }

    def ids(self, setting: Setting) -> NDArray[np.uint16]:
        """Token ids [n, L] of a setting, read from OUT/ids if they are there."""
        release_graphs()  # memory does not suffice for those of all settings
        return np.concatenate([self.ids_of_part(setting, part) for part in self.parts()])

    def ids_of_part(self, setting: Setting, part: range) -> NDArray[np.uint16]:
        """Token ids [n, L] of some images of a setting."""

        def make() -> dict[str, NDArray[np.uint16]]:
            began, batches = time.monotonic(), []
            for start in range(part.start, part.stop, self.spec.batch):
                index = np.arange(start, min(start + self.spec.batch, part.stop))
                batches.append(to_tokens(self.ids_of_batch(setting, index)))
            say(f"{setting.name}: {len(part)} images in {time.monotonic() - began:.0f} s")
            return {"ids": np.concatenate(batches)}

        path = self.spec.out / "ids" / f"{setting.name}-{part.start}-{part.stop}.npz"
        return kept_arrays(path, self.key(setting, part), make)["ids"]

    def ids_of_batch(self, setting: Setting, index: NDArray[np.int64]) -> Tensor:
        """int64 [B, L]. An image's ids depend on its index and label alone, not on the others of its batch."""
        labels_B = torch.from_numpy(self.labels_of(index)).to(self.device)
        noise_BL = uniforms(self.spec.seed, index, self.pyramid.num_tokens).to(self.device)
        ids_BL, usual = noise_BL[:, :0], self.sampling_of(setting)
        for role, stop in setting.parts:
            var, sampling = self.transformer(role), usual.of_refiner if self.refs[role].role == "refiner" else usual
            ids_BL = Decode.of(var, self.vqvae.quantize, labels_B, noise_BL, ids_BL, stop, sampling).tokens()
        return ids_BL

    def pixels(self, ids_nL: NDArray[np.uint16]) -> Iterator[NDArray[np.uint8]]:
        """Pictures of token ids [n, L], or of their first scales: uint8 [B, H, W, 3] a batch."""
        for start in range(0, len(ids_nL), self.spec.batch):
            part = torch.from_numpy(ids_nL[start : start + self.spec.batch].astype(np.int64)).to(self.device)
            yield to_uint8(decode(self.vqvae, part))
