"""`tandem study spectrum`: figure 3b of the paper, which frequencies the first and the last scales make.

Shapes: n images, B images of a batch, K scales, H and W pixels, F rings of frequency.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from tandem.collaborative import decode
from tandem.config import to_dict
from tandem.errors import InputError
from tandem.metrics import Z95, Estimate, mean_of, paired_difference
from tandem_jobs.study.figures import NO_PLOT, can_plot, drawn, with_bars
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.study_options import StudyOptions
from tandem_jobs.study.subject import Setting, Subject

EXAMPLES = """examples:
  tandem study spectrum --out studies
  tandem study spectrum --out studies --images 96 --ends 2"""
HALF_NYQUIST = 0.25  # cycles per pixel
FLOOR = 1e-6  # of the zero frequency: amplitudes below it count as this


class SpectrumSpec(StudyOptions):
    """Fourier spectrum of what the first and the last scales make, for drafter and refiner."""

    images: PositiveInt = Field(480, description="images of each model, spread evenly over the classes")
    ends: PositiveInt = Field(3, description="scales at each end whose spectrum is drawn")


@dataclass(frozen=True)
class Spectrum:
    """
    Attributes:
        first: log10 amplitude of the first scales by ring, relative to the zero frequency of the image: [n, F].
        last: that of what the last scales add.
        high: share of the energy above half the Nyquist frequency in what each scale adds: [n, K].
        high_first: the same for the first scales together: [n].
        high_last: for what the last scales add together.
    """

    first: NDArray[np.float64]
    last: NDArray[np.float64]
    high: NDArray[np.float64]
    high_first: NDArray[np.float64]
    high_last: NDArray[np.float64]


def run(spec: SpectrumSpec) -> dict[str, Any]:
    """Make the images of both models, decode them scale by scale, and write the report."""
    subject = Subject(spec)
    if spec.ends >= subject.scales:
        raise InputError(f"--ends: expected 1 to {subject.scales - 1}, got {spec.ends}")
    if spec.images < 2:
        raise InputError(f"--images: expected 2 or more for an interval, got {spec.images}")
    spectra = {setting.name: measure(subject, setting, spec.ends) for setting in reversed(subject.alone)}
    values = {
        **{name: getattr(spec, name) for name in ("images", "seed", "ends")},
        "sampling": to_dict(subject.sampling),
        "dtype": subject.dtype_name,
        "weights_sha256": subject.models.hashes,
        "high_share": {name: high_shares(spectrum) for name, spectrum in spectra.items()},
        "curves": {name: curves(spectrum) for name, spectrum in spectra.items()},
    }
    found = table(spectra, subject.pyramid.patch_nums, spec.ends)
    pictures = {"spectrum": drawn(2, partial(draw, spectra, spec.ends), width=5.0)} if can_plot() else {}
    notes = [explanation(spec.ends), *([] if pictures else [NO_PLOT])]
    heading = "Fourier spectrum of the first and the last scales"
    sentences = findings(spectra, spec.ends)
    return report(StudyResult("spectrum", heading, values, [found], pictures, sentences, notes), spec.out)


@torch.inference_mode()
def measure(subject: Subject, setting: Setting, ends: int) -> Spectrum:
    """Spectra of the images of a setting."""
    ids_nL, offsets, parts = subject.ids(setting), subject.pyramid.offsets, []
    for start in range(0, len(ids_nL), subject.spec.batch):
        rows = ids_nL[start : start + subject.spec.batch].astype(np.int64)
        ids_BL = torch.from_numpy(rows).to(subject.device)
        images = [decode(subject.vqvae, ids_BL[:, :stop]).double().cpu().numpy() for stop in offsets[1:]]
        parts.append(spectrum_of(np.stack(images), ends))
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Spectrum.__dataclass_fields__}
    return Spectrum(**joined)


def spectrum_of(images_KB3HW: NDArray[np.float64], ends: int) -> Spectrum:
    """Spectra of images that were decoded from their first 1, 2, ..., K scales.

    The transform is linear: that of what a scale adds is the difference of two transforms.
    """
    whole_KB3HW = np.fft.fft2(images_KB3HW)
    added_KB3HW = np.diff(whole_KB3HW, axis=0, prepend=0)
    first_B3HW, last_B3HW = whole_KB3HW[ends - 1], whole_KB3HW[-1] - whole_KB3HW[-1 - ends]
    zero_B = np.abs(whole_KB3HW[-1, :, :, 0, 0]).mean(axis=1)
    return Spectrum(
        relative(first_B3HW, zero_B),
        relative(last_B3HW, zero_B),
        high_share(added_KB3HW).T,
        high_share(first_B3HW),
        high_share(last_B3HW),
    )


def frequencies(height: int, width: int) -> NDArray[np.float64]:
    """Distance from the zero frequency in cycles per pixel: [H, W]."""
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])


def relative(transform_B3HW: NDArray[np.complex128], zero_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """log10 of the amplitude over `zero_B`, mean over channels and over rings one cycle per image wide: [B, F].

    Rings end at the Nyquist frequency; the corners beyond it belong to none.
    """
    height, width = transform_B3HW.shape[-2:]
    ring_HW = np.rint(frequencies(height, width) * height).astype(np.int64)
    amplitude_BN = np.abs(transform_B3HW).mean(axis=1).reshape(len(zero_B), -1)
    rings = range(height // 2 + 1)
    mean_BF = np.stack([amplitude_BN[:, ring_HW.ravel() == ring].mean(axis=1) for ring in rings], axis=1)
    ratio_BF: NDArray[np.float64] = np.maximum(mean_BF / np.maximum(zero_B, FLOOR)[:, None], FLOOR)
    return np.log10(ratio_BF)


def high_share(transform_3HW: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Share of the energy (squared amplitude, all channels, without the zero frequency) above half the Nyquist
    frequency; 0 where there is no energy. [..., 3, H, W] -> [...]."""
    energy_HW = np.square(np.abs(transform_3HW)).sum(axis=-3)
    energy_HW[..., 0, 0] = 0
    high = energy_HW[..., frequencies(*energy_HW.shape[-2:]) > HALF_NYQUIST].sum(axis=-1)
    total = energy_HW.sum(axis=(-2, -1))
    return np.divide(high, total, out=np.zeros_like(total), where=total > 0)


def estimate(values_n: NDArray[np.float64]) -> Estimate:
    return mean_of(torch.from_numpy(values_n))


def high_shares(spectrum: Spectrum) -> dict[str, Any]:
    """Means over images with their intervals."""
    each = [estimate(np.ascontiguousarray(column)) for column in spectrum.high.T]
    return {"first": estimate(spectrum.high_first), "last": estimate(spectrum.high_last), "of_scale": each}


def curves(spectrum: Spectrum) -> dict[str, dict[str, list[float]]]:
    """Mean over images by ring, and half the width of its 95 % interval."""
    found = {}
    for name, values_nF in (("first", spectrum.first), ("last", spectrum.last)):
        half_F = Z95 * values_nF.std(axis=0, ddof=1) / np.sqrt(len(values_nF))
        found[name] = {"mean": values_nF.mean(axis=0).round(4).tolist(), "half": half_F.round(4).tolist()}
    return found


def table(spectra: dict[str, Spectrum], patch_nums: tuple[int, ...], ends: int) -> StudyTable:
    """Share of high frequencies in what each scale adds, for both models and their paired difference."""
    rows: list[list[Cell]] = []
    for scale, side in enumerate(patch_nums):
        columns = [np.ascontiguousarray(one.high[:, scale]) for one in spectra.values()]
        rows.append([f"{scale + 1}", f"{side} x {side}", *compared(columns)])
    first, last = [one.high_first for one in spectra.values()], [one.high_last for one in spectra.values()]
    rows.append([f"first {ends} alone", "", *compared(first)])
    rows.append([f"last {ends}", "", *compared(last)])
    title = "Share of the energy above half the Nyquist frequency in what a scale adds"
    return StudyTable(title, ("scale", "token map", *spectra, "refiner minus drafter"), rows)


def compared(columns: list[NDArray[np.float64]]) -> list[Estimate]:
    """Drafter, refiner, and refiner minus drafter; images of the same seeds are pairs."""
    drafter, refiner = columns
    difference = paired_difference(torch.from_numpy(refiner), torch.from_numpy(drafter))
    return [estimate(drafter), estimate(refiner), difference]


def findings(spectra: dict[str, Spectrum], ends: int) -> list[str]:
    """Whether the first scales make the low frequencies and the last the high ones."""
    sentences = []
    for name, spectrum in spectra.items():
        first, last = estimate(spectrum.high_first), estimate(spectrum.high_last)
        agrees = "as in the paper" if first.high < last.low else "unlike the paper, which has the last scales higher"
        sentences.append(
            f"{name}: the first {ends} scales have {first} of their energy above half the Nyquist frequency, the last "
            f"{ends} add {last}, {agrees}."
        )
    low_by_last = [1 - estimate(spectrum.high_last).value for spectrum in spectra.values()]
    sentences.append(f"Of what the last {ends} scales add, {min(low_by_last):.2f} or more lies below it all the same.")
    of_first, of_last = (np.array(curve["mean"]) for curve in curves(spectra["drafter"]).values())
    if (above := np.flatnonzero(of_last > of_first)).size:
        sentences.append(
            f"From {above[0]} cycles per image on ({above[0] / (len(of_first) - 1):.2f} of Nyquist) the drafter's last "
            f"{ends} scales add more amplitude than its first {ends} have."
        )
    return sentences


def explanation(ends: int) -> str:
    return (
        f"First {ends} scales: the image decoded from their token maps alone. Last {ends}: the image of all scales "
        f"minus the image without the last {ends}. Amplitude of the two-dimensional Fourier transform of pixels in "
        "[0, 1], mean over channels and over rings one cycle per image wide, as log10 relative to the zero frequency "
        "of the whole image; then the mean over images, with its 95 % interval. The transform takes an image as "
        "periodic, so its edges count as detail. The share leaves out the zero frequency."
    )


def draw(spectra: dict[str, Spectrum], ends: int, by_ring: Any, by_scale: Any) -> None:
    """Curves by frequency with bands, and the share of high frequencies of each scale."""
    for colour, (name, spectrum) in zip(("#4c72b0", "#dd8452"), spectra.items(), strict=True):
        for part, values in curves(spectrum).items():
            mean, half = np.array(values["mean"]), np.array(values["half"])
            x = np.linspace(0, 1, len(mean))
            label = f"{name}, {part} {ends}"
            by_ring.plot(x, mean, "-" if part == "first" else "--", color=colour, linewidth=1.2, label=label)
            by_ring.fill_between(x, mean - half, mean + half, color=colour, alpha=0.25)
        shares = high_shares(spectrum)["of_scale"]
        with_bars(by_scale, list(range(1, len(shares) + 1)), shares, color=colour, marker="o", label=name)
    by_ring.set(title="log10 amplitude relative to the zero frequency", xlabel="frequency, 1: Nyquist")
    by_ring.legend()
    by_scale.set(title="energy above half Nyquist in what a scale adds", xlabel="scale")
    by_scale.legend()
