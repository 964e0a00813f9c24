"""Token sets and the VQVAE that made them, opened and checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.checkpoints.weights import load_var, load_vqvae
from tandem.errors import InputError
from tandem.training.batches import TokenSet
from tandem.training.carried import Weights
from tandem.training.matching import TokenShape
from tandem.training.start import var_from
from tandem_jobs.train.training_options import TokenOptions
from tandem_workers.models.model_set import Resolved, resolve
from tandem_workers.training.token_files import TokenFiles, open_tokens, read_all
from tandem_workers.training.token_info import TokenInfo, check_vqvae


@dataclass(frozen=True)
class TokenSource:
    """What a transformer learns from, opened but not read.

    Raises, when made by `open_source`: InputError for no token set, one that is not complete, or one of another VQVAE;
    CheckpointError for the VQVAE.
    """

    tokens: TokenFiles
    heldout: TokenFiles | None
    vqvae: Resolved

    @property
    def info(self) -> TokenInfo:
        return self.tokens.info

    @property
    def shape(self) -> TokenShape:
        """What a transformer has to share with the tokens."""
        info = self.info
        return TokenShape(info.vocab_size, info.latent_channels, info.patch_nums, info.num_classes, info.class_names)

    def identity(self) -> dict[str, object]:
        """What runs in one place share. The held-out set is part of it: a log has the scores on one set."""
        heldout = self.heldout.info.digest if self.heldout else None
        return {
            "tokens": self.info.digest,
            "heldout": heldout,
            "vqvae_sha256": self.info.vqvae_sha256,
        }

    def read(self, balance: float) -> tuple[TokenSet, TokenSet | None, Weights]:
        """Tokens, held-out tokens, and the VQVAE. OutputError for a damaged block."""
        tokens = read_all(self.tokens, None if balance == 1 else balance)
        heldout = read_all(self.heldout) if self.heldout else None
        vqvae = weights_of_vqvae(self.vqvae, self.info.patch_nums)
        return tokens, heldout, vqvae


def open_source(spec: TokenOptions) -> TokenSource:
    """All that can be checked from records."""
    tokens = open_tokens(spec.tokens)
    heldout = open_tokens(spec.heldout) if spec.heldout else None
    vqvae = resolve("vqvae", spec.vqvae, random_weights=False)
    check_vqvae(tokens.info, vqvae.ref.sha256)
    if heldout:
        check_vqvae(heldout.info, vqvae.ref.sha256)
        check_alike(tokens.info, heldout.info)
    return TokenSource(tokens, heldout, vqvae)


def check_alike(tokens: TokenInfo, heldout: TokenInfo) -> None:
    """InputError unless labels mean the same, and pyramids are equal."""
    if tokens.patch_nums != heldout.patch_nums:
        raise InputError(
            f"--heldout: expected token maps of {tokens.patch_nums}, as --tokens, got {heldout.patch_nums}"
        )
    if tokens.class_names != heldout.class_names and None not in (tokens.class_names, heldout.class_names):
        pairs = zip(tokens.class_names or (), heldout.class_names or (), strict=False)
        other = next(((a, b) for a, b in pairs if a != b), None)
        got = f"{other[1]!r} in the place of {other[0]!r}" if other else f"{heldout.num_classes} classes"
        raise InputError(
            f"--heldout: expected the {tokens.num_classes} classes of --tokens, got {got}",
            "tandem tokenize --class-names FILE gives both sets the same labels",
        )
    if heldout.num_classes > tokens.num_classes:
        raise InputError(f"--heldout: expected at most {tokens.num_classes} classes, got {heldout.num_classes}")


def weights_of_vqvae(found: Resolved, patch_nums: tuple[int, ...]) -> Weights:
    """A VQVAE's weights for workers. CheckpointError."""
    with found.ref.opened() as path:
        return Weights.of(load_vqvae(path, patch_nums=patch_nums, preparation=None))


def weights_to_start(found: Resolved, shape: TokenShape, seed: int) -> tuple[Weights, list[str]]:
    """A transformer's weights to train on, for these tokens, and sentences on what was changed. CheckpointError."""
    with found.ref.opened() as path:
        var, notes = var_from(path, shape, seed)
        return Weights.of(var), notes


def weights_of_teacher(found: Resolved) -> Weights:
    """A transformer's weights as they are. CheckpointError."""
    with found.ref.opened() as path:
        return Weights.of(load_var(path, preparation=None))
