"""Every Triton kernel becomes machine code for the cards of four generations, without spilling registers to memory;
those that write FP8 for the three that have it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

BF16, F32, FP8, ROWS, INT = "*bf16", "*fp32", "*fp8e4nv", "*i64", "i32"
MODULATED = {"x": BF16, "scale": BF16, "shift": BF16, "out": BF16, "width": INT, "tokens": INT, "x_stride": INT}
MODULATED |= {"modulation_stride": INT, "eps": "fp32"}
GATED = MODULATED | {"branch": BF16, "gate": BF16, "x_out": BF16, "row_scale": F32}
QUANTISED = {"x": BF16, "out": FP8, "row_scale": F32, "width": INT, "tokens": INT, "row_stride": INT}
QUANTISED |= {"token_stride": INT, "head_stride": INT}
# Arguments of each kernel in any order, and constants: those of d30 and of the widest map of the published VQVAE
KERNELS: dict[str, tuple[dict[str, str], list[dict[str, Any]]]] = {
    "gated_norm": (
        GATED,
        [{"HAS_BRANCH": True, "HAS_OUT": True, "QUANTISED": False, "BLOCK": block} for block in (2048, 4096)],
    ),
    "head_norm": (
        MODULATED | {"strength": F32, "partner": ROWS, "first": INT},
        [{"GUIDED": guided, "BLOCK": 2048} for guided in (True, False)],
    ),
    "split_heads": (
        {"qkv": BF16, "head_scale": F32, "q": BF16, "k": BF16, "v": BF16, "tokens": INT, "first_query": INT}
        | {"heads": INT, "kv_stride_row": INT, "kv_stride_head": INT, "kv_start": INT},
        [{"HEADS": 32, "SIZE": 64}],
    ),
    "add_and_measure": (
        {"x": BF16, "other": BF16, "bias": BF16, "total": BF16, "mean": F32, "squares": F32, "pixels": INT}
        | {"channels": INT, "tile_pixels": INT, "width": INT},
        [
            {"HAS_OTHER": True, "HAS_TOTAL": True, "DOUBLED": False, "ROWS": 8, "BLOCK": 256},
            {"HAS_OTHER": False, "HAS_TOTAL": True, "DOUBLED": True, "ROWS": 2, "BLOCK": 1024},
        ],
    ),
    "group_factors": (
        {"mean": F32, "squares": F32, "weight": BF16, "bias": BF16, "before": BF16, "factor": F32, "offset": F32}
        | {"pixels": INT, "channels": INT, "group": INT, "tiles": INT, "tile_pixels": INT, "eps": "fp32"},
        [{"TILES": 128, "GROUP": 32}],
    ),
    "scale_and_activate": (
        {"x": BF16, "factor": F32, "offset": F32, "out": BF16, "pixels": INT, "channels": INT},
        [{"SILU": True, "ROWS": 8, "BLOCK": 256}],
    ),
}


# Widths of d30 and d36, and of their hidden layers
KERNELS_OF_FP8 = {
    "gated_norm": (
        GATED | {"out": FP8},
        [{"HAS_BRANCH": True, "HAS_OUT": True, "QUANTISED": True, "BLOCK": block} for block in (2048, 4096)],
    ),
    "quantised_rows": (
        QUANTISED,
        [{"GELU": False, "SIZE": 64, "BLOCK": block} for block in (2048, 4096)]
        + [{"GELU": True, "SIZE": block, "BLOCK": block, "num_warps": 16} for block in (8192, 16384)],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "kernels"),
    [*((capability, KERNELS) for capability in (80, 89, 90, 100)), *((c, KERNELS_OF_FP8) for c in (89, 90, 100))],
)
def test_kernels_compile_without_spills(
    capability: int, kernels: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("kernels that are interpreted cannot be compiled")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tandem import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for name, (types, variants) in kernels.items():
        for variant in variants:
            constants = {key: value for key, value in variant.items() if key != "num_warps"}
            options = {"num_warps": variant.get("num_warps", 4)}
            kernel = getattr(triton_kernels, name)
            signature = {arg: "constexpr" if arg in constants else types[arg] for arg in kernel.arg_names}
            source = ASTSource(kernel, signature, constexprs=constants)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            (tmp_path / "kernel.cubin").write_bytes(made.asm["cubin"])
            command = [tool, "--dump-resource-usage", tmp_path / "kernel.cubin"]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "STACK:0" in usage and "LOCAL:0" in usage, f"{name} {variant}: {usage}"
