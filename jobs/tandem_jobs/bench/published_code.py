"""The published CoDe code (github.com/czg1225/CoDe) as a baseline: from the user's checkout, never shipped with ours.

It runs with random weights: on a GPU in its own float16 autocast and with TF32, like its `demo`, on a CPU in float32.
huggingface_hub, which decoding does not need, is replaced by a stub.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tandem.config import VarConfig, VqvaeConfig
from tandem.errors import InputError
from tandem_jobs.bench.gpu_models import SAMPLING, GpuModels

RESETTING = (nn.Linear, nn.LayerNorm, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)
FILES = ("models/__init__.py", "models/var.py")


class PublishedCode:
    """Drafter and refiner of the published code, of the sizes of ours."""

    def __init__(self, folder: Path, drafter: VarConfig, refiner: VarConfig, vqvae: VqvaeConfig, device: torch.device):
        check_checkout(folder)
        self.device, self.scales = device, drafter.pyramid.num_scales
        with importable(folder), torch.device(device), contextlib.redirect_stdout(io.StringIO()):
            from models import build_vae_var_ctf  # type: ignore[import-not-found]

            built = build_vae_var_ctf(
                V=drafter.vocab_size,
                Cvae=drafter.latent_channels,
                ch=vqvae.base_channels,
                share_quant_resi=4,
                device=device,
                patch_nums=drafter.patch_nums,
                num_classes=drafter.num_classes,
                depth_draft=drafter.depth,
                depth_refine=refiner.depth,
                shared_aln=False,
            )
        _, self.drafter, self.refiner = built
        for model in built:
            model.eval().requires_grad_(False)
            for parameter in model.parameters():
                parameter.normal_(0, 0.02)

    def make(self, labels_B: Tensor, draft_steps: int | None) -> Any:
        """Labels to pixels, like the published `demo`. `draft_steps` None: the drafter alone."""
        on_gpu = self.device.type == "cuda"
        half = torch.float16 if on_gpu else torch.bfloat16
        with (
            torch.inference_mode(),
            fast_products(),
            torch.autocast(self.device.type, half, on_gpu, cache_enabled=True),
        ):
            asked = {"B": len(labels_B), "label_B": labels_B, "g_seed": 0, "more_smooth": False}
            asked |= {"cfg": SAMPLING.cfg, "top_p": SAMPLING.top_p}
            if draft_steps is None:
                return self.drafter.autoregressive_infer_cfg(**asked, top_k=SAMPLING.top_k)
            asked |= {
                "top_k": [SAMPLING.top_k] * self.scales,
                "temp": [SAMPLING.temperature(scale) for scale in range(self.scales)],
            }
            f_hat, drafted = self.drafter.autoregressive_infer_cfg_draft(**asked, exit_num=draft_steps)
            return self.refiner.autoregressive_infer_cfg_refine(
                **asked, draft=drafted, f_hat=f_hat, entry_num=draft_steps
            )


def check_checkout(folder: Path) -> None:
    """Raises InputError if `folder` does not hold the published code."""
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise InputError(
            f"--published: expected a checkout of the published CoDe code, {folder} has no {missing[0]}",
            "git clone https://github.com/czg1225/CoDe",
        )


def check_shapes(drafter: VarConfig, refiner: VarConfig, vqvae: VqvaeConfig) -> None:
    """Raises InputError for models that the published code cannot have: it would be measured with others."""
    taken = {"num_classes", "vocab_size", "latent_channels", "patch_nums", "depth", "base_channels"}
    for name, config in (("drafter", drafter), ("refiner", refiner), ("vqvae", vqvae)):
        ours = vars(config)
        published = vars(type(config)(**{field: value for field, value in ours.items() if field in taken}))
        if other := next((field for field, value in published.items() if value != ours[field]), None):
            raise InputError(
                f"--published: expected a {name} with the published {other} {published[other]}, got {ours[other]}",
                "--drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights",
            )


def compare(
    published: PublishedCode, models: GpuModels, batch_size: int, draft_steps: int | None, repeats: int
) -> dict[str, Any]:
    """Images a second of both, in turn; ours with default settings."""
    batch = models.batch(batch_size)
    theirs_ms = models.median_ms(lambda: published.make(batch.labels_B, draft_steps), repeats)

    def ours() -> None:
        if draft_steps is None:
            models.alone(batch)
        else:
            models.decode(models.refine(batch, models.draft(batch, draft_steps)))

    with models.way("graphs"):
        ours_ms = models.median_ms(ours, repeats, warm=2)
    return {
        "draft_steps": draft_steps,
        "batch": batch_size,
        "published_images_per_s": 1e3 * batch_size / theirs_ms,
        "images_per_s": 1e3 * batch_size / ours_ms,
        "ratio": theirs_ms / ours_ms,
    }


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Context manager: the checkout on sys.path, a stub of huggingface_hub, and weights initialised only once."""
    hub: Any = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = None
    hub.PyTorchModelHubMixin = type("Mixin", (), {"__init_subclass__": classmethod(lambda cls, **names: None)})
    before = sys.modules.get("huggingface_hub")
    kept = {kind: kind.reset_parameters for kind in RESETTING}
    truncated = nn.init.trunc_normal_
    sys.modules["huggingface_hub"] = hub
    sys.path.insert(0, str(folder))
    nn.init.trunc_normal_ = lambda tensor, *args, **names: tensor.normal_(0, 0.02)
    try:
        yield
    finally:
        nn.init.trunc_normal_ = truncated
        sys.path.remove(str(folder))
        del sys.modules["huggingface_hub"]
        if before is not None:
            sys.modules["huggingface_hub"] = before
        for kind, reset in kept.items():  # the published code turns them off for the whole process
            kind.reset_parameters = reset  # type: ignore[method-assign]


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Context manager: TF32, which the published code turns on."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
