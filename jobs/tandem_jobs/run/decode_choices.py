"""How a job decodes: the user's options, else defaults of the models and devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tandem.assembly import Preparation
from tandem.checkpoints.fine_tuning import FineTuned
from tandem.config import Pyramid, SamplingConfig, VarConfig, numbers
from tandem.errors import InputError
from tandem.fp8 import check_capability
from tandem_cluster.devices import joins
from tandem_cluster.session import count_real_gpus
from tandem_jobs.options.flags import as_flag
from tandem_jobs.options.options import DecodingOptions, PreparationOptions, TunedOptions
from tandem_jobs.options.spec import Spec
from tandem_jobs.options.tuned_file import check_weights
from tandem_jobs.run.progress import say
from tandem_workers.dataset.row_settings import SAMPLING_SETTINGS
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import DTYPES, ModelSet


def choose_draft_steps(asked: int | None, models: ModelSet) -> int:
    """The requested N, else the models' default. InputError, naming the flag, if the pyramid does not have it."""
    with as_flag():
        pyramid = models.drafter_config.pyramid
        return pyramid.check_draft_steps(models.default_draft_steps if asked is None else asked)


def choose_sampling(options: Spec, own: SamplingConfig, pyramid: Pyramid) -> SamplingConfig:
    """The models' own sampling, with what the options of a command say of it. InputError naming the flag."""
    asked = {name: getattr(options, name, None) for name in SAMPLING_SETTINGS}
    with as_flag():
        sampling = own.changed(**asked)
        sampling.strengths(pyramid.num_scales)
    return sampling


def warn_if_unsuited(
    models: ModelSet,
    draft_steps: Sequence[int],
    sampling: Sequence[SamplingConfig],
    roles: Sequence[str] = ("drafter", "refiner"),
) -> None:
    """Say in a line each which values of N and of guidance are not those that the models were fine-tuned for.

    Args:
        models: of the job.
        draft_steps: every N of its images; none: any.
        sampling: every setting; none if they are not known.
        roles: the models that decode.
    """
    tuned = {role: models.fine_tuned[role] for role in roles if role in models.fine_tuned}
    for role, found in tuned.items():
        if others := sorted({*draft_steps} - {found.draft_steps}) if found.draft_steps else ():
            say(f"note: the {role} was fine-tuned for N = {found.draft_steps}, here N = {', '.join(map(str, others))}")
    guided = {role: largest_strength(role, models.drafter_config.pyramid, draft_steps, sampling) for role in tuned}
    in_numbers = any(numbers(config.cfg_schedule) for config in sampling)
    if sampling and (text := unsuited_guidance(models, tuned, guided, in_numbers)):
        say(f"warning: {text}")


def largest_strength(
    role: str, pyramid: Pyramid, draft_steps: Sequence[int], sampling: Sequence[SamplingConfig]
) -> float:
    """The largest strength of settings that guide a model's scales at all; 0 if none does."""
    scales = pyramid.num_scales
    own = slice(max(draft_steps, default=scales)) if role == "drafter" else slice(min(draft_steps, default=0), scales)
    settings = [config if role == "drafter" else config.of_refiner for config in sampling]
    strengths = [config.strengths(scales) for config in settings]
    return max((max(each) for each in strengths if max(each[own]) > 0), default=0.0)


def unsuited_guidance(
    models: ModelSet, tuned: Mapping[str, FineTuned], guided: Mapping[str, float], in_numbers: bool
) -> str:
    """What is wrong with the guidance of these models, and what to do; empty if it suits them. `in_numbers`: it has a
    strength for each scale."""
    distilled = [role for role, found in tuned.items() if found.needs_no_guidance]
    flags = {"drafter": "--cfg", "refiner": "--refiner-cfg" if len(tuned) > 1 else "--cfg"}
    if again := [role for role in distilled if guided[role] > 0]:
        flag = "cfg" if again == list(tuned) else flags[again[0]]
        suits = "strengths of 0 at its scales suit, and cost" if in_numbers else f"{flag} 0 suits, and costs"
        strength = max(guided[role] for role in again)
        return f"cfg {strength:g} guides again what the {' and the '.join(again)} learned: {suits} half"
    learned = models.fine_tuned["drafter"].distilled_cfg
    usual = f"{learned or models.sampling.refiner_cfg or models.sampling.cfg or SamplingConfig().cfg:g}"
    if bare := [role for role in tuned if role not in distilled and not guided[role] and (distilled or learned)]:
        where = "the drafts are of a distilled drafter, and " if len(tuned) == 1 else ""
        return f"{where}cfg 0 leaves the {bare[0]} without guidance, which it needs: {flags[bare[0]]} {usual}"
    return ""


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


def check_tuned(options: TunedOptions, models: ModelSet) -> None:
    """InputError if --settings is for other weights."""
    if options.settings is not None:
        check_weights(options.settings, models.hashes)


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
        f"({models.describe(ref)}, sha256 {ref.sha256[:12]})"
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
