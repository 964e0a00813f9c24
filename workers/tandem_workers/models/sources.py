"""Sources of weights: a path, an address on S3, the Hugging Face hub or a web server, or a published file's name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tandem.checkpoints.fine_tuning import AS_TRAINED, FineTuned
from tandem.config import VAR_PRESETS, VQVAE_PRESET, VarConfig, VqvaeConfig
from tandem.errors import InputError
from tandem.hashing import FileHash
from tandem.user_files import cause_of, check_spelling, is_file, shown
from tandem_workers.models.fetch import cache_folder, fetch, fetched_sha256, is_remote
from tandem_workers.models.fetch_http import EXPECTED as HTTP_ADDRESS
from tandem_workers.models.fetch_http import fetch_from_http
from tandem_workers.models.fetch_hub import EXPECTED as HUB_ADDRESS
from tandem_workers.models.fetch_hub import fetch_from_hub


@dataclass(frozen=True)
class LocalFile:
    """A weights file on this machine, and its address, pinned to these bytes if its kind allows."""

    source: str
    path: Path
    file_hash: FileHash

    @property
    def sha256(self) -> str:
        """Hex sha256 of the file, empty where there is none."""
        return self.file_hash.sha256


@dataclass(frozen=True)
class Published:
    """A weights file that its authors publish. Tandem does not redistribute it."""

    address: str
    role: str
    config: VarConfig | VqvaeConfig
    size_bytes: int | None  # as the hub shows it; None: not known, about 4 bytes a parameter
    licence: str = "MIT"  # of the repository on the hub
    fine_tuned: FineTuned = AS_TRAINED  # their headers do not say it


def _published() -> dict[str, Published]:
    var, code = "hf://FoundationVision/var", "hf://Zigeng/VAR_CoDe"
    sizes = {"d16": 1_243_116_346, "d20": 2_405_720_018, "d24": 4_135_702_618, "d36": 9_436_153_085}
    files = {
        f"var_{depth}": Published(f"{var}/var_{depth}.pth", "drafter or refiner", config, sizes.get(depth))
        for depth, config in VAR_PRESETS.items()
    }
    vqvae = "vae_ch160v4096z32"
    files[vqvae] = Published(f"{var}/{vqvae}.pth", "vqvae", VQVAE_PRESET, 436_075_834)
    drafters = {6: 8_042_307_088, 7: 8_042_309_244, 9: 8_042_307_088}
    for n in (6, 7, 8, 9):  # fine-tuned for N draft steps: a drafter of depth 30 and a refiner of depth 16
        for role, config, size in (
            ("drafter", VAR_PRESETS["d30"], drafters.get(n)),
            ("refiner", VAR_PRESETS["d16"], 1_243_131_706),
        ):
            name = f"{role}_{n}"
            about = f"{code}/{name}.pth", f"{role}, N = {n}", config, size
            files[name] = Published(*about, fine_tuned=FineTuned(draft_steps=n))
    return files | dict(_guidance_free())


def _guidance_free() -> Iterator[tuple[str, Published]]:
    """VARs that were trained further to need no guidance, by CCA (arXiv 2410.09347) and DDO (arXiv 2503.01103)."""
    free = FineTuned(guidance_free=True)
    for depth in ("d16", "d20", "d24", "d30"):
        address = f"hf://ChenDRAG/CCA_VAR/CCA_VAR_Guidance_Free/VAR_{depth}_CCA.pth"
        yield f"var_{depth}_cca", Published(address, "drafter or refiner", VAR_PRESETS[depth], None, fine_tuned=free)
    for depth in ("d16", "d30"):
        about = f"hf://nvidia/DirectDiscriminativeOptimization/var_{depth}-ddo.pth", "drafter or refiner"
        yield f"var_{depth}_ddo", Published(*about, VAR_PRESETS[depth], None, "CC BY-NC-SA 4.0", free)


PUBLISHED = _published()


def address_of(source: str) -> str:
    """The address of a published file given by name; any other source unchanged."""
    return PUBLISHED[source].address if source in PUBLISHED else source


def local_file(source: str, patient: bool = False) -> LocalFile:
    """A weights file; remote ones are fetched once per machine. Raises InputError: one line, and what to do.

    `patient` retries busy servers for over a minute, for workers that all fetch at once.
    """
    source = address_of(source)
    if not is_remote(source):
        check_spelling(source)
        try:
            path = Path(os.path.expanduser(source)).resolve()
            return LocalFile(str(path), path, FileHash(path) if is_file(path) else FileHash.known(""))
        # ValueError: a zero byte; RuntimeError: a symbolic link loop
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{shown(source)}: cannot be read: {cause_of(error)}") from error
    found, path, digest = fetched_file(source, patient)
    return LocalFile(found, path, FileHash.known(digest, path))


def is_in_cache(path: Path) -> bool:
    """Whether a fetched file is in a cache of this process: nodes of one machine may have caches of their own."""
    if path.is_relative_to(cache_folder()):
        return True
    from huggingface_hub import constants

    return path.is_relative_to(constants.HF_HUB_CACHE)


def fetched_file(source: str, patient: bool) -> tuple[str, Path, str]:
    """Address, path and hex sha256 of the copy of a remote file in the cache, fetched or checked by its hash."""
    scheme = source.partition("://")[0]
    if scheme == "hf":
        return fetch_from_hub(source)
    if scheme in ("https", "http"):
        try:
            return (source, *fetch_from_http(source, cache_folder(), patient))
        except OSError as error:
            raise InputError(
                f"cannot keep {source} in {cache_folder()}: {error}", "TANDEM_CACHE names another"
            ) from error
    if scheme != "s3":
        raise InputError(f"expected a path, s3://bucket/key, {HUB_ADDRESS}, or {HTTP_ADDRESS}, got {source}")
    path = fetch(source, patient)
    return source, path, fetched_sha256(path)
