"""The paper's figures (CoDe, arXiv 2411.17787) beside which studies set ours. Speed is in `tandem.counting.roofline`.

ImageNet at 256 px, K = 10 scales, drafter VAR-d30 (2.0 B), refiner VAR-d16 (0.3 B). A setting of ours has the paper's
with as many scales left to the refiner, K - N. No figure of the paper has an interval.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "CoDe, arXiv 2411.17787"
SCALES = 10


@dataclass(frozen=True)
class Quality:
    """FID, Inception Score, precision and recall."""

    fid: float
    inception_score: float
    precision: float
    recall: float


DRAFTER = Quality(1.95, 301, 0.8107, 0.5945)  # VAR-d30 alone, Tables 1 and 4
# Table 6: N -> CoDe without fine-tuning
TRAINING_FREE = {
    9: Quality(1.99, 306, 0.8120, 0.5978),
    8: Quality(2.10, 308, 0.8155, 0.5915),
    7: Quality(2.25, 309, 0.8204, 0.5781),
    6: Quality(2.42, 306, 0.8283, 0.5721),
    5: Quality(2.56, 303, 0.8313, 0.5660),
    4: Quality(2.75, 295, 0.8342, 0.5427),
    3: Quality(2.99, 288, 0.8410, 0.5327),
    2: Quality(3.19, 283, 0.8433, 0.5179),
    1: Quality(3.39, 268, 0.8132, 0.5382),
}
# Table 1: N -> CoDe with fine-tuned models (Table 2 has the same FID)
FINE_TUNED = {
    9: Quality(1.94, 296, 0.80, 0.61),
    8: Quality(1.98, 302, 0.81, 0.60),
    7: Quality(2.11, 303, 0.82, 0.59),
    6: Quality(2.27, 297, 0.82, 0.58),
}
# Table 1: N -> MB on an L20 at batch 64 in float16; None: VAR-d30
MEMORY_MB: dict[int | None, int] = {9: 28_803, 8: 21_019, 7: 19_943, 6: 19_943, None: 39_228}
# Table 4: scale -> FID where VAR of these sizes makes it, and VAR-d30 all others
SIZES = ("0.3B", "0.6B", "1.0B")
ONE_SCALE: dict[int, tuple[float, float, float]] = {
    2: (2.23, 2.13, 2.04),
    3: (2.35, 2.21, 2.09),
    4: (2.27, 2.18, 2.13),
    5: (2.17, 2.13, 2.10),
    6: (2.09, 2.05, 2.05),
    7: (2.09, 2.05, 2.04),
    8: (2.08, 2.04, 2.02),
    9: (2.02, 2.01, 2.00),
    10: (1.99, 1.97, 1.98),
}
# Table 5: N -> scores; None: VAR-d30
NO_REFERENCE: dict[int | None, dict[str, float]] = {
    None: {"musiq": 60.72, "clipiqa": 0.6813, "niqe": 6.1739},
    9: {"musiq": 60.78, "clipiqa": 0.6818, "niqe": 6.1024},
    8: {"musiq": 60.79, "clipiqa": 0.6812, "niqe": 6.0849},
    7: {"musiq": 60.82, "clipiqa": 0.6800, "niqe": 6.1247},
    6: {"musiq": 60.76, "clipiqa": 0.6808, "niqe": 6.1490},
}


def same_left(left: int) -> int | None:
    """The paper's N with `left` scales for the refiner; None where it has none."""
    draft_steps = SCALES - left
    return draft_steps if left > 0 and draft_steps in TRAINING_FREE else None
