"""Tandem: collaborative decoding (CoDe, arXiv 2411.17787) of next-scale image models, the algorithm.

    from tandem import draft, refine, decode      the three steps of CoDe
    from tandem import load_var, load_vqvae       models from published or own checkpoints

Torch, numpy and Pillow only; the distributed system around it lives in tandem_workers, tandem_jobs and tandem_cluster.
"""

import importlib
import typing

from tandem.config import Pyramid, SamplingConfig, VarConfig, VqvaeConfig
from tandem.errors import (
    CheckpointError,
    InputError,
    JobError,
    LabelError,
    OutputError,
    PlacementError,
    StoppedError,
    TandemError,
    TandemWarning,
)
from tandem.version import __version__

if typing.TYPE_CHECKING:
    from tandem.checkpoints.weights import load_var, load_vqvae, open_checkpoint
    from tandem.collaborative import decode, draft, generate, generate_alone, refine
    from tandem.prefix import Prefix
    from tandem.sampling import uniforms
    from tandem.scales import decode_scales
    from tandem.var import Var
    from tandem.vqvae import Vqvae

__all__ = [
    "CheckpointError",
    "InputError",
    "JobError",
    "LabelError",
    "OutputError",
    "PlacementError",
    "Prefix",
    "Pyramid",
    "SamplingConfig",
    "StoppedError",
    "TandemError",
    "TandemWarning",
    "Var",
    "VarConfig",
    "Vqvae",
    "VqvaeConfig",
    "__version__",
    "decode",
    "decode_scales",
    "draft",
    "generate",
    "generate_alone",
    "load_var",
    "load_vqvae",
    "open_checkpoint",
    "refine",
    "uniforms",
]

# Imported at first use: torch takes seconds and 180 MB, which processes that only encode and store do not need
_MODULES = {
    **dict.fromkeys(("decode", "draft", "generate", "generate_alone", "refine"), "collaborative"),
    **dict.fromkeys(("load_var", "load_vqvae", "open_checkpoint"), "checkpoints.weights"),
    "Prefix": "prefix",
    "decode_scales": "scales",
    "uniforms": "sampling",
    "Var": "var",
    "Vqvae": "vqvae",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tandem' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tandem.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """All public names, also those that are imported at first use."""
    return sorted({*globals(), *__all__})
