"""How a job decodes: the user's options, else defaults of the models and devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from tandem.assembly import Preparation
from tandem.config import Pyramid, SamplingConfig, VarConfig
from tandem.errors import InputError
from tandem.fp8 import check_capability
from tandem_cluster.devices import joins
from tandem_cluster.session import count_real_gpus
from tandem_jobs.options.flags import flag_of
from tandem_jobs.options.options import DecodingOptions, PreparationOptions
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import DTYPES, ModelSet


@contextmanager
def as_flag() -> Iterator[None]:
    """Context manager: errors that begin with an argument's name begin with its flag instead."""
    try:
        yield
    except InputError as error:
        name, _, problem = str(error).partition(":")
        raise InputError(f"{flag_of(name)}:{problem}", error.hint) from None


def choose_draft_steps(asked: int | None, pyramid: Pyramid) -> int:
    """The requested N, else the default. InputError, naming the flag, if the pyramid does not have it."""
    with as_flag():
        return pyramid.check_draft_steps(pyramid.default_draft_steps if asked is None else asked)


def choose_sampling(options: DecodingOptions, own: SamplingConfig) -> SamplingConfig:
    """The model's own sampling with the user's options. InputError naming the flag."""
    names = ("cfg", "top_k", "top_p", "temperatures")
    with as_flag():
        return replace(own, **{name: value for name in names if (value := getattr(options, name)) is not None})


def choose_settings(
    options: DecodingOptions,
    seed: int,
    draft_steps: int,
    sampling: SamplingConfig,
    batch: int,
    on_real_gpus: bool,
    row_settings: tuple[str, ...] = (),
) -> DecodeSettings:
    dtype = choose_dtype(options.dtype, on_real_gpus)
    return DecodeSettings(
        seed,
        draft_steps,
        sampling,
        batch,
        dtype,
        options.threads,
        choose_preparation(options, on_real_gpus, dtype),
        row_settings,
        on_real_gpus,
    )


def choose_dtype(asked: str, on_real_gpus: bool) -> str:
    if asked != "auto":
        return asked
    return "bfloat16" if on_real_gpus else "float32"


def choose_preparation(options: PreparationOptions, on_gpu: bool, dtype: str) -> Preparation:
    """How models compute on a kind of device. InputError, naming the flag, for what is not done there."""
    preparation = Preparation.of(options, on_gpu)
    with as_flag():
        preparation.check(torch.device("cuda" if on_gpu else "cpu"), DTYPES[dtype])
    return preparation


def check_gpus_here(options: DecodingOptions, address: str | None, on_cpus: bool) -> None:
    """InputError, before anything starts, for options that this machine's GPUs do not support. GPUs of a cluster are
    checked once it is joined."""
    if (options.int8 or options.fp8) and not on_cpus and not joins(address) and (gpus := count_real_gpus()):
        choose_preparation(options, True, choose_dtype(options.dtype, True))
        with as_flag():
            for gpu in range(gpus):
                check_capability(torch.device("cuda", gpu))


def check_preparation(options: DecodingOptions, configs: Mapping[str, VarConfig | None]) -> None:
    """Raise InputError if a model, by its role, cannot be prepared as the options ask."""
    shared = [role for role, config in configs.items() if config and config.shared_adaln]
    if options.fold_adaln and shared:
        raise InputError(f"--fold-adaln: expected AdaLN weights in every block, got a {shared[0]} that shares them")


def describe_models(models: ModelSet, settings: DecodeSettings, configs: Sequence[VarConfig | None]) -> list[str]:
    """Models and settings in a few lines."""
    transformers = (models.drafter, models.refiner)
    lines = [
        f"{ref.role}: VAR of depth {config.depth}, {config.num_parameters / 1e6:.1f} M parameters "
        f"({ref.label}, sha256 {ref.sha256[:12]})"
        for ref, config in zip(transformers, configs, strict=True)
        if ref and config
    ]
    scales = models.drafter_config.pyramid.num_scales
    prepared = "".join(f", {name}" for name in settings.preparation.names)
    decoding = f"{settings.dtype}{prepared}, batches of {settings.batch}, seed {settings.seed}"
    rows = f"; each row has its own {', '.join(settings.row_settings)}" if settings.row_settings else ""
    names = models.class_names.names
    lines.append(f"classes: {len(names)}, {names[0]!r} to {names[-1]!r}")
    return [*lines, f"N = {settings.draft_steps} of {scales} scales, {decoding}{rows}"]
