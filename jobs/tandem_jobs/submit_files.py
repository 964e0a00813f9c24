"""Prepares a submitted job: one complete command line, and the local files to send with it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tandem.config import VAR_PRESETS
from tandem.errors import InputError
from tandem.zoo import FILES
from tandem_cluster.profile_file import built_in_profiles
from tandem_cluster.secrets import has_user
from tandem_jobs import cli
from tandem_jobs.options.spec import Spec, typed_name, without_variable
from tandem_workers.features.extractors import EXTRACTORS
from tandem_workers.models.class_files import IMAGENET, NUMBERS
from tandem_workers.models.fetch import is_remote
from tandem_workers.models.model_set import VQVAE_PRESET_NAME
from tandem_workers.models.sources import PUBLISHED

COMMANDS = (
    *("generate", "edit", "draft", "draft-edits", "refine", "verify", "evaluate", "tokenize"),
    *("train var", "finetune drafter", "finetune refiner", "bench pipeline", "bench store"),
)
# Options that name places which all nodes see
PLACES = (
    *("out", "drafts", "dataset", "data", "reference", "against", "test", "features_out", "tokens", "heldout"),
    *("pictures", "masks", "mask"),
)
# Options that may name files of this machine
INPUTS = (
    "labels",
    "class_names",
    "drafter",
    "refiner",
    "vqvae",
    "init",
    "teacher",
    "profile",
    "features",
    "inception",
    "settings",
)
NAMES = {
    *FILES,
    VQVAE_PRESET_NAME,
    *VAR_PRESETS,
    *PUBLISHED,
    NUMBERS,
    IMAGENET,
    *EXTRACTORS,
}  # values that are not files
MAX_SENT_BYTES = 100 << 20  # Ray keeps sent files in the memory of the head node
ENV_HINT = "for a value with commas or braces, set the variable here and give only its name"
PATH_HINT = "files with relative paths are sent from this machine; absolute paths are those of the cluster's nodes"


def read_command(command: Sequence[str]) -> tuple[str, Spec]:
    """The command's name and its checked options, from flags, variables and --spec file. Raises InputError."""
    if not command:
        raise InputError("expected a command after --, got none", "tandem submit -- generate --classes all ...")
    name, rest = cli.split_command(list(command))
    if name not in COMMANDS:
        raise InputError(f"expected a command that can be submitted ({', '.join(COMMANDS)}), got {name}")
    with without_variable("TANDEM_ADDRESS"):  # it is for the submission
        spec = cli.parse_options(name, rest)
    if getattr(spec, "address", None) is not None:
        raise InputError("expected --address before --, as the job itself runs on the cluster")
    for field, value in spec.model_dump(exclude_none=True).items():
        if has_user(value):
            raise InputError(f"--{field.replace('_', '-')}: expected an address without user and password")
    for field in PLACES:
        place = getattr(spec, field, None)
        if place is not None and not is_remote(place) and not place.startswith("/"):
            raise InputError(
                f"{typed_name(type(spec), field)}: expected s3://bucket/prefix or an absolute path that all nodes "
                f"share, got {place}",
                PATH_HINT,
            )
    return name, spec


def send_files(spec: Spec, folder: Path) -> Spec:
    """Copy files with relative paths to the folder to be sent. Returns the changed options. Raises InputError."""
    updates: dict[str, Any] = {}
    size = 0
    for field in INPUTS:
        value = getattr(spec, field, None)
        sources = (value,) if isinstance(value, str) else value or ()
        sent = []
        for source in sources:
            if (
                is_remote(source)
                or source.startswith("/")
                or source in NAMES
                or (field == "profile" and source in built_in_profiles())
            ):
                sent.append(source)
                continue
            path = Path(os.path.expanduser(source))
            if not path.is_file():
                raise InputError(f"--{field}: no such file here: {source}", PATH_HINT)
            if "," in path.name:
                raise InputError(f"--{field}: expected a file name without commas, got {path.name}")
            if (size := size + path.stat().st_size) > MAX_SENT_BYTES:
                raise InputError(
                    f"--{field}: expected at most {MAX_SENT_BYTES >> 20} MiB of files to send with the job, "
                    f"got {source} of {path.stat().st_size / 2**20:.0f} MiB",
                    "put it where the nodes can read it: s3://bucket/key, or a shared path",
                )
            name = f"{field}-{len(sent)}-{path.name}"
            shutil.copy(path, folder / name)
            sent.append(name)
        if sent:
            updates[field] = sent[0] if isinstance(value, str) else tuple(sent)
    return spec.model_copy(update=updates)


def read_variables(pairs: Sequence[str] | None) -> dict[str, str]:
    """NAME or NAME=VALUE -> values. Raises InputError for one that is not set here."""
    variables = {}
    for pair in pairs or ():
        name, given, value = pair.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise InputError(f"--env: expected NAME or NAME=VALUE, got {name!r}", ENV_HINT)
        if not given and name not in os.environ:
            raise InputError(f"--env: expected a variable that is set here, or NAME=VALUE, got {name}", ENV_HINT)
        variables[name] = value if given else os.environ[name]
    return variables
