"""Messages between the deployments of the endpoint. No torch here: the ingress does not import it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tandem.config import SamplingConfig
from tandem.images import Codec


@dataclass(frozen=True)
class ImageRequest:
    """One checked request: n images of one class. Image i equals that with index i of a job with this seed.

    Attributes:
        draft_steps: N from 0 to K; 0: the refiner alone, K: the drafter alone.
        preview_scales: numbers of scales after which a preview is sent, each from 1 to K - 1.
        size: width and height in pixels that files are brought to; None: the model's.
        deterministic: decode alone, in batches of one fixed shape.
    """

    label: int
    seed: int
    n: int
    draft_steps: int
    sampling: SamplingConfig
    codec: Codec = "png"
    quality: int = 92
    deterministic: bool = False
    preview_scales: frozenset[int] = frozenset()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Drafted:
    """From a drafter to a refiner: uint16 [n, L'] ids of the first `draft_steps` scales, and seconds so far."""

    request: ImageRequest
    tokens: NDArray[np.uint16]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Preview:
    """A preview as an image file, decoded from the first `scale` scales."""

    image: int
    scale: int
    made_by: str
    data: bytes


@dataclass(frozen=True)
class Pictures:
    """The n image files of a request, and the seconds of each stage, without the wait for a batch."""

    files: list[bytes]
    seconds: dict[str, float] = field(default_factory=dict)
