"""What a token set holds, for whoever trains on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem.errors import InputError


@dataclass(frozen=True)
class TokenInfo:
    """What a token set holds.

    Attributes:
        vqvae_sha256: of the file of the VQVAE, in hex.
        class_names: in label order, if known.
        rows: pictures.
        digest: hex sha256 that names the content: ids, labels, class names and what made them.
        vqvae: where the VQVAE came from, for messages.
        labels: how many pictures have which label.
        skipped: pictures that were left out.
    """

    vqvae_sha256: str
    vocab_size: int
    latent_channels: int
    patch_nums: tuple[int, ...]
    class_names: tuple[str, ...] | None
    num_classes: int
    views: int
    rows: int
    digest: str
    vqvae: str = ""
    labels: Mapping[int, int] = field(default_factory=dict)
    skipped: int = 0

    @property
    def num_tokens(self) -> int:
        """L, token ids of a view."""
        return sum(side * side for side in self.patch_nums)


def check_vqvae(info: TokenInfo, sha256: str) -> None:
    """InputError unless the token set was made by the VQVAE of this hash."""
    if info.vqvae_sha256 != sha256:
        raise InputError(
            f"expected tokens of the VQVAE {sha256[:12]}…, the token set is of {info.vqvae_sha256[:12]}…"
            + (f" ({info.vqvae})" if info.vqvae else ""),
            "name that VQVAE, or tokenize the pictures with this one",
        )
