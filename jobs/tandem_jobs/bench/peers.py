"""Other image generators of the paper's Table 1, with their published shapes and random weights, to time beside ours.

Networks are those of diffusers and transformers where these have them; a generation is so many calls of a part of it,
and each part is timed alone: hours on a CPU become minutes. Sampling and image decoders are left out, as in the paper.
Shapes: facebookresearch/DiT, FoundationVision/LlamaGen, hp-l33/AiM and LTH14/mar on GitHub.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from tandem.errors import InputError
from tandem_jobs.bench.masked_diffusion import MaskedDiffusion

PeerName = Literal["dit-xl2", "llamagen-xxl", "aim-xl", "mar-b"]
GUIDED = 2  # rows of an image: all of them are guided
IMAGE_SIZE = 256  # px; LlamaGen makes 384 and scales them down
MIDDLES = 4  # steps of MAR that are timed, each in the middle of its share of all steps
Place = Mapping[str, Any]  # device and dtype


@dataclass(frozen=True)
class Part:
    """A call that a generation makes `times` times. `prepare` gives the call, ready to be timed."""

    times: float
    prepare: Callable[[], Callable[[], object]]


@dataclass(frozen=True)
class Peer:
    """
    Attributes:
        title: as in the paper's Table 1.
        steps: calls of the network that depend on each other; as in the table, but for LlamaGen, whose 384 px take 576.
        paper_images_per_s: of the table: an L20, batch 64, float16.
        package: that has the network; empty: ours has it.
        shape: of the network.
        network: with random weights.
        calls: parts of a generation, by network, shape, steps, batch and place.
    """

    title: str
    steps: int
    paper_images_per_s: float
    package: str
    shape: Mapping[str, int]
    network: Callable[[Mapping[str, int]], Any]
    calls: Callable[[Any, Mapping[str, int], int, int, Place], list[Part]]

    def parts(self, batch: int, place: Place) -> list[Part]:
        """Of a generation of B images, with random weights, on a device and in a dtype."""
        with torch.inference_mode():
            with torch.device(place["device"]):
                network = self.network(self.shape)
            return self.calls(network.to(**place).eval(), self.shape, self.steps, batch, place)


def dit(shape: Mapping[str, int]) -> Any:
    """A diffusion transformer on latents of four channels."""
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        attention_head_dim=shape["width"] // shape["heads"],
        in_channels=4,
        out_channels=8,
        sample_size=shape["side"],
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        attention_bias=True,
        activation_fn="gelu-approximate",
    )


def denoise(model: Any, shape: Mapping[str, int], steps: int, batch: int, place: Place) -> list[Part]:
    """As many forwards of all rows as there are steps."""
    rows = GUIDED * batch
    x = torch.randn(rows, 4, shape["side"], shape["side"], **place)
    t, y = (torch.full((rows,), value, device=place["device"]) for value in (500, 0))
    return [Part(steps, lambda: partial(model, x, timestep=t, class_labels=y))]


def llamagen(shape: Mapping[str, int]) -> Any:
    """A Llama over image tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape["width"],
            intermediate_size=shape["hidden"],
            num_hidden_layers=shape["depth"],
            num_attention_heads=shape["heads"],
            vocab_size=shape["vocabulary"],
            tie_word_embeddings=False,
        )
    )


def next_by_cache(model: Any, shape: Mapping[str, int], steps: int, batch: int, place: Place) -> list[Part]:
    """A forward of one token a row for each, over a cache of full length, as published."""
    from transformers import StaticCache

    token = torch.zeros(GUIDED * batch, 1, dtype=torch.int64, device=place["device"])

    name = kept_as(model, "past_key_values")

    def prepare() -> Callable[[], object]:
        cache = StaticCache(config=model.config, max_cache_len=steps)
        model(token, **{name: cache}, use_cache=True)  # allocates it
        return partial(model, token, **{name: cache}, use_cache=True)

    return [Part(steps, prepare)]


def kept_as(model: Any, before: str) -> str:
    """The argument that a network takes its cache by: "cache", or what it was called `before` transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else before


def aim(shape: Mapping[str, int]) -> Any:
    """A Mamba over image tokens."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        hidden_size=shape["width"],
        num_hidden_layers=shape["depth"],
        state_size=shape["state"],
        vocab_size=shape["vocabulary"],
    )
    return MambaForCausalLM(config)


def next_by_state(model: Any, shape: Mapping[str, int], steps: int, batch: int, place: Place) -> list[Part]:
    """A forward of one token a row for each, from the state of those before."""
    token = torch.zeros(GUIDED * batch, 1, dtype=torch.int64, device=place["device"])

    name = kept_as(model, "cache_params")

    def prepare() -> Callable[[], object]:
        return partial(model, token, **{name: getattr(model(token, use_cache=True), name)}, use_cache=True)

    return [Part(steps, prepare)]


def mar(shape: Mapping[str, int]) -> MaskedDiffusion:
    """Encoder, decoder and diffusion of tokens."""
    return MaskedDiffusion(shape["width"], shape["depth"], shape["heads"], shape["mlp_width"], shape["mlp_depth"])


def unmask(model: Any, shape: Mapping[str, int], steps: int, batch: int, place: Place) -> list[Part]:
    """At each step an encoder of the known tokens, a decoder of all, and a diffusion of the new ones. Known are 1 - cos
    of the share of steps done; some steps stand for all."""
    tokens, rows, each = shape["tokens"], GUIDED * batch, steps / MIDDLES
    parts = []
    for middle in range(MIDDLES):
        at = (middle + 0.5) / MIDDLES
        known = tokens - math.floor(tokens * math.cos(math.pi / 2 * at))
        x = torch.randn(rows, shape["buffer"] + known, shape["width"], **place)
        parts.append(Part(each, partial(partial, model.backbone, x, tokens - known)))
    new = max(1, round(rows * tokens / steps))  # of all rows, in the mean
    latents, condition = (torch.randn(new, width, **place) for width in (model.channels, shape["width"]))
    return [*parts, Part(steps * shape["denoising"], partial(partial, model.head, latents, condition))]


PEERS: dict[PeerName, Peer] = {
    "dit-xl2": Peer(
        "DiT-XL/2", 50, 3.33, "diffusers", {"depth": 28, "width": 1152, "heads": 16, "side": 32}, dit, denoise
    ),
    "llamagen-xxl": Peer(
        "LlamaGen-XXL",
        576,
        0.87,
        "transformers",
        {"depth": 48, "width": 1536, "heads": 24, "hidden": 4096, "vocabulary": 16384},
        llamagen,
        next_by_cache,
    ),
    "aim-xl": Peer(
        "AiM-XL",
        256,
        6.87,
        "transformers",
        {"depth": 48, "width": 1536, "state": 16, "vocabulary": 16384},
        aim,
        next_by_state,
    ),
    "mar-b": Peer(
        "MAR-B",
        100,
        2.15,
        "",
        {"depth": 12, "width": 768, "heads": 12, "tokens": 256, "buffer": 64}
        | {"mlp_width": 1024, "mlp_depth": 6, "denoising": 100},
        mar,
        unmask,
    ),
}


def check_peers(names: tuple[PeerName, ...]) -> None:
    """InputError if a package is missing."""
    lack = sorted({PEERS[name].package for name in names} - {""})
    if missing := [package for package in lack if importlib.util.find_spec(package) is None]:
        raise InputError(f"--peers: expected the package {missing[0]}, got none", "pip install 'tandem-code[peers]'")
