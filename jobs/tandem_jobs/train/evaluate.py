"""`tandem evaluate`: quality of drafter, refiner and CoDe at every N, on images made with the same seeds.

A small classifier is trained on the real pictures. Its agreement with the label and a Fréchet distance on its
features, to the real pictures, are measured for every setting, with 95 % intervals.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tandem.assembly import Preparation
from tandem.checkpoint_reader import read_state
from tandem.classifier import Classifier, examine, train_classifier
from tandem.collaborative import decode, draft, generate_alone, refine
from tandem.config import SamplingConfig, to_dict
from tandem.errors import InputError
from tandem.metrics import Estimate, bootstrap, frechet_distance, nearest, paired_difference, share
from tandem.prefix import to_tokens
from tandem.sampling import uniforms
from tandem.training_pictures import PictureSet, draw, to_float
from tandem.var import Var
from tandem.vqvae import Vqvae
from tandem_jobs.options.options import Share
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.decode_choices import as_flag, choose_draft_steps
from tandem_jobs.run.progress import say
from tandem_jobs.train.sheets import nearest_sheet, samples_sheet, scales_sheet
from tandem_jobs.train.train import check_size, load_splits, psnr, reconstruct
from tandem_workers.models.model_set import DTYPES, ModelSet, load_tokenizer, load_transformer, resolve_models
from tandem_workers.stages.refiner import to_uint8

EXAMPLES = """examples:
  tandem pictures --out pictures
  tandem evaluate --data pictures --out evaluation --threads 2
  tandem evaluate --data pictures --out quick --images 240 --draft-steps 3,5 --cfg 2"""
ALONE = ("refiner", "drafter")
COLUMNS = ("agreement", "agreement_minus_drafter", "frechet", "frechet_minus_drafter")


class EvaluateSpec(Spec):
    """Measure the quality of drafter, refiner and CoDe at every N, on paired seeds, with 95 % intervals."""

    data: Path = Field(description="folder with train/<class>/<image> and heldout/<class>/<image>")
    out: Path = Field(description="folder for token ids (kept for resuming), report.json and sheets")
    drafter: str = Field("embedded", description="'embedded' or a file")
    refiner: str = Field("embedded", description="'embedded' or a file")
    vqvae: str = Field("embedded", description="'embedded' or a file")
    images: PositiveInt = Field(2400, description="images of every setting, spread evenly over the classes")
    draft_steps: tuple[PositiveInt, ...] | None = Field(None, description="values of N; default: all")
    cfg: float | None = Field(None, ge=0, description="classifier-free guidance; default: the model's own")
    top_k: int | None = Field(None, ge=0, description="keep the k most likely codes; default: the model's own")
    top_p: Share | None = Field(None, description="keep codes up to this total probability; default: the model's own")
    temperatures: tuple[float, ...] | None = Field(None, description="one per scale; default: the model's own")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of drafter and refiner; the VQVAE, whose pixels are measured, stays float32"
    )
    int8: bool = Field(False, description="int8 weights and activations in the transformers' blocks; approximate")
    fp8: bool = Field(False, description="the same in FP8, computed as with --fp8 on a GPU; approximate")
    seed: int = Field(1, ge=0, description="seed of the images")
    batch: PositiveInt = Field(64, description="images per forward")
    threads: PositiveInt = Field(2, description="CPU threads")
    classifier_steps: PositiveInt = Field(1500, description="training steps of the classifier, batch 64")
    rounds: PositiveInt = Field(200, description="resamples of each bootstrap interval")

    def sampling(self, own: SamplingConfig) -> SamplingConfig:
        names = ("cfg", "top_k", "top_p", "temperatures")
        with as_flag():
            return replace(own, **{n: value for n in names if (value := getattr(self, n)) is not None})


def run(spec: EvaluateSpec) -> dict[str, Any]:
    """Generate missing images, measure, and write OUT/report.json and the sheets samples, nearest and scales.png."""
    torch.set_num_threads(spec.threads)
    models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, random_weights=False)
    train, heldout = load_splits(spec.data)
    check_pictures(models, train)
    spec.out.mkdir(parents=True, exist_ok=True)
    vqvae = load_tokenizer(models.vqvae, models.drafter_config.patch_nums, DTYPES["float32"], torch.device("cpu"))
    classifier = trained_classifier(spec, train)
    labels = torch.from_numpy(np.resize(np.arange(len(train.classes)), spec.images))
    settings = setting_names(spec, models)
    ids = make_ids(spec, models, vqvae, labels, settings)
    real_features = examine(classifier, real_pixels(train, spec.images))[1]
    hits, features, pixels = {}, {}, {}
    for name in settings:
        pixels[name] = decode_all(vqvae, ids[name])
        predicted, features[name] = examine(classifier, pixels[name])
        hits[name] = predicted == labels
    say("measuring, with intervals")
    default = f"code-{models.drafter_config.pyramid.default_draft_steps}"
    code = default if default in settings else settings[-1]
    report = {
        "images": spec.images,
        "seed": spec.seed,
        "dtype": spec.dtype,
        "int8": spec.int8,
        "fp8": spec.fp8,
        "sampling": to_dict(spec.sampling(models.sampling)),
        "weights_sha256": models.hashes,
        "heldout_psnr_db": mean_psnr(vqvae, heldout),
        "classifier_on_heldout": vars(share(examine(classifier, heldout.pixels)[0] == heldout.labels)),
        "settings": {
            name: measure(spec, name, hits, features, real_features, labels, train.classes) for name in settings
        },
        "memorisation": {"setting": code} | memorisation(pixels[code], heldout, train),
    }
    columns = len(train.classes)
    samples_sheet({name: pixels[name][:columns] for name in settings}, train.classes).save(spec.out / "samples.png")
    nearest_sheet(pixels[code][: 4 * columns], train, columns).save(spec.out / "nearest.png")
    scales_sheet(vqvae, ids[code][:columns], int(code.removeprefix("code-"))).save(spec.out / "scales.png")
    (spec.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (spec.out / "report.md").write_text(as_markdown(report))
    print_report(report)
    print(json.dumps(report))
    return report


def check_pictures(models: ModelSet, train: PictureSet) -> None:
    """InputError unless the pictures have the models' size and classes, at least two, in the same order."""
    check_size(train, models.image_size, "the models make")
    theirs, ours = tuple(models.class_names), train.classes
    if len(ours) < 2:
        raise InputError(f"expected pictures of two or more classes to tell apart, got {ours[0]!r} alone")
    if len(ours) != len(theirs) or (set(ours) == set(theirs) and ours != theirs):
        expected, got = (", ".join(names[:12]) for names in (theirs, ours))
        raise InputError(
            f"expected the {len(theirs)} classes of the models in their order ({expected}), got {len(ours)} ({got})",
            'DATA/pictures.json sets the order: {"classes": ["first", "second"]}',
        )


def setting_names(spec: EvaluateSpec, models: ModelSet) -> list[str]:
    """Both models alone, and CoDe at each N."""
    pyramid = models.drafter_config.pyramid
    steps = spec.draft_steps or tuple(range(1, pyramid.num_scales))
    return [*ALONE, *(f"code-{choose_draft_steps(n, pyramid)}" for n in steps)]


def trained_classifier(spec: EvaluateSpec, train: PictureSet) -> Classifier:
    """The classifier, trained once and kept in OUT."""
    path = spec.out / f"classifier_{spec.classifier_steps}.pt"
    if path.exists():
        model = Classifier(len(train.classes))
        model.load_state_dict(read_state(path, model.state_dict()))
        return model.requires_grad_(False).eval()
    say(f"training the classifier on {len(train)} real pictures, {spec.classifier_steps} steps")
    model = train_classifier(train, spec.classifier_steps, batch=64, seed=0)
    torch.save(model.state_dict(), path)
    return model


def make_ids(
    spec: EvaluateSpec, models: ModelSet, vqvae: Vqvae, labels: Tensor, settings: list[str]
) -> dict[str, Tensor]:
    """Token ids uint16 [n, L] of every setting, read from OUT if it has them for the same job."""
    sampling = spec.sampling(models.sampling)
    job = job_key(spec, models)
    cpu, dtype, preparation = torch.device("cpu"), DTYPES[spec.dtype], Preparation(int8=spec.int8, fp8=spec.fp8)
    drafter, refiner = (
        load_transformer(ref, dtype, cpu, preparation) for ref in (models.drafter, models.ref("refiner"))
    )
    ids = {}
    for name in settings:
        path = spec.out / f"ids_{name}.npz"
        if path.exists():
            with np.load(path) as kept:
                if str(kept["job"]) == job:
                    ids[name] = torch.from_numpy(kept["ids"].astype(np.int64))
                    continue
        began, parts = time.monotonic(), []
        for start in range(0, spec.images, spec.batch):
            index = np.arange(start, min(start + spec.batch, spec.images))
            noise = uniforms(spec.seed, index, drafter.config.pyramid.num_tokens)
            parts.append(ids_of_batch(name, drafter, refiner, vqvae, labels[index], noise, sampling))
        ids[name] = torch.cat(parts)
        np.savez(path, ids=to_tokens(ids[name]), job=np.array(job))
        say(f"{name}: {spec.images} images in {time.monotonic() - began:.0f} s")
    return ids


def job_key(spec: EvaluateSpec, models: ModelSet) -> str:
    """Everything that token ids depend on. Ids stored before --dtype and --int8 existed count as default ones."""
    key = [models.hashes, to_dict(spec.sampling(models.sampling)), spec.seed, spec.images, spec.batch, spec.threads]
    numbers = {"dtype": spec.dtype, "int8": spec.int8} | ({"fp8": True} if spec.fp8 else {})
    return json.dumps(key if numbers == {"dtype": "float32", "int8": False} else [*key, numbers], sort_keys=True)


def ids_of_batch(
    name: str,
    drafter: Var,
    refiner: Var,
    vqvae: Vqvae,
    labels_B: Tensor,
    noise_BL: Tensor,
    sampling: SamplingConfig,
) -> Tensor:
    if name in ALONE:
        model = drafter if name == "drafter" else refiner
        return generate_alone(model, vqvae, labels_B, noise_BL, sampling)[1]
    prefix = draft(drafter, vqvae.quantize, labels_B, noise_BL, int(name.removeprefix("code-")), sampling)
    return refine(refiner, vqvae.quantize, labels_B, noise_BL, prefix, sampling)


def decode_all(vqvae: Vqvae, ids_nL: Tensor) -> Tensor:
    """uint8 [n, 3, H, W]."""
    parts = [torch.from_numpy(to_uint8(decode(vqvae, part))) for part in ids_nL.split(64)]
    return torch.cat(parts).permute(0, 3, 1, 2).contiguous()


def real_pixels(train: PictureSet, count: int) -> Tensor:
    """Real pictures with all classes equally frequent: uint8 [count, 3, H, W]."""
    generator = torch.Generator().manual_seed(0)
    return train.pixels[draw(train, train.weights(power=0.0), count, generator)]


def measure(
    spec: EvaluateSpec,
    name: str,
    hits: dict[str, Tensor],
    features: dict[str, Tensor],
    real_nF: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Agreement and Fréchet distance of a setting, and their paired differences to the drafter alone."""
    ours, drafter = features[name], features["drafter"]

    def distance(picks: Tensor) -> float:
        return frechet_distance(ours[picks], real_nF)

    def distance_beyond_drafter(picks: Tensor) -> float:
        return frechet_distance(ours[picks], real_nF) - frechet_distance(drafter[picks], real_nF)

    estimates: dict[str, Estimate] = {
        "agreement": share(hits[name]),
        "agreement_minus_drafter": paired_difference(hits[name], hits["drafter"]),
        "frechet": bootstrap(distance, spec.images, spec.rounds, seed=0),
        "frechet_minus_drafter": bootstrap(distance_beyond_drafter, spec.images, spec.rounds, seed=0),
    }
    per_class = {c: round(hits[name][labels == i].double().mean().item(), 3) for i, c in enumerate(classes)}
    return {key: vars(value) for key, value in estimates.items()} | {"agreement_by_class": per_class}


def mean_psnr(vqvae: Vqvae, heldout: PictureSet) -> float:
    """Mean over held-out pictures of the reconstruction's PSNR, dB."""
    real = to_float(heldout.pixels)
    with torch.inference_mode():
        return torch.cat([psnr(reconstruct(vqvae, part), part) for part in real.split(64)]).mean().item()


def memorisation(pixels_n3HW: Tensor, heldout: PictureSet, train: PictureSet) -> dict[str, float]:
    """Median distance to the nearest training picture (RMS, 0 to 255), of samples and of held-out pictures."""
    known = train.pixels.flatten(1).float()
    return {
        "samples": nearest(pixels_n3HW.flatten(1).float(), known)[0].median().item(),
        "heldout": nearest(heldout.pixels.flatten(1).float(), known)[0].median().item(),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The settings as a table for a model card."""
    lines = [
        "| Setting | Classifier agrees | minus drafter | Fréchet distance | minus drafter |",
        "|---|---|---|---|---|",
    ]
    for name, values in report["settings"].items():
        shown = [Estimate(**values[key]) for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(map(str, shown))} |")
    return "\n".join(lines) + "\n"


def print_report(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['images']} images a setting, paired seeds, 95 % intervals")
    for column in ("setting", "classifier agrees", "minus drafter", "Fréchet distance", "minus drafter"):
        table.add_column(column)
    for name, values in report["settings"].items():
        table.add_row(name, *(str(Estimate(**values[key])) for key in COLUMNS))
    console = Console(stderr=True)
    console.print(table)
    heldout = Estimate(**report["classifier_on_heldout"])
    console.print(f"held-out pictures: PSNR {report['heldout_psnr_db']:.2f} dB, classifier right on {heldout}")
    memorised = report["memorisation"]
    console.print(
        f"median distance to the nearest training picture, 0 to 255: {memorised['samples']:.1f} "
        f"({memorised['setting']}), {memorised['heldout']:.1f} (held-out pictures)"
    )
