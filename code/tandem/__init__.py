"""Tandem: collaborative decoding (CoDe, arXiv 2411.17787) of next-scale image models, the algorithm.

    from tandem import draft, refine, decode      the three steps of CoDe
    from tandem import load_var, load_vqvae       models from published or own checkpoints

Torch, numpy and Pillow only; the distributed system around it lives in the packages workers, jobs and cluster.
"""

from tandem.collaborative import decode, draft, generate, generate_alone, refine
from tandem.config import Pyramid, SamplingConfig, VarConfig, VqvaeConfig
from tandem.errors import (
    CheckpointError,
    InputError,
    JobError,
    LabelError,
    OutputError,
    PlacementError,
    TandemError,
)
from tandem.prefix import Prefix
from tandem.sampling import uniforms
from tandem.var import Var
from tandem.version import __version__
from tandem.vqvae import Vqvae
from tandem.weights import load_var, load_vqvae, open_checkpoint

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
    "TandemError",
    "Var",
    "VarConfig",
    "Vqvae",
    "VqvaeConfig",
    "__version__",
    "decode",
    "draft",
    "generate",
    "generate_alone",
    "load_var",
    "load_vqvae",
    "open_checkpoint",
    "refine",
    "uniforms",
]
