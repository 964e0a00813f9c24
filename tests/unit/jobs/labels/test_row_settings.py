"""Settings of label rows as the label file has them: read, checked as the flags are, and filled in."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tandem.class_names import ClassNames
from tandem.config import Pyramid, SamplingConfig
from tandem.errors import InputError, LabelError
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.labels.labels import LabelRows
from tandem_jobs.labels.settings_columns import JOB_SETTINGS, fill_settings, most_demanding
from tandem_jobs.options.options import DecodingOptions, ImageOptions
from tandem_jobs.run.batch_size import COLOCATED, Workload, all_stages, sampling_to_count
from tandem_workers.dataset.row_settings import ROW_SETTINGS
from tandem_workers.models.model_set import resolve_models

NAMES = ClassNames(("ant", "face", "flag"))
FAULTY = Path(__file__).parents[3] / "data/labels/label_columns_like_settings.csv"
OWN = SamplingConfig(cfg=1.5, top_k=600, top_p=0.96, temperatures=(1.1, 1.0))
PYRAMID = Pyramid((1, 2, 3, 4))


def write(tmp_path: Path, kind: str, rows: list[dict]) -> str:
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        cells = [[f'"{value}"' if "," in str(value) else str(value) for value in row.values()] for row in rows]
        path.write_text("\n".join(map(",".join, [list(rows[0]), *cells])) + "\n")
    return str(path)


def filled(rows: LabelRows, seed: int = 9, own: SamplingConfig = OWN) -> LabelRows:
    if rows.unfilled_settings is None:
        return rows
    return fill_settings(rows, own, 2, seed, PYRAMID, "--labels: rows.csv")


def read(tmp_path: Path, kind: str, rows: list[dict], own: SamplingConfig = OWN) -> LabelRows:
    return filled(read_label_file(write(tmp_path, kind, rows), NAMES), own=own)


def values(rows: LabelRows) -> dict[str, list]:
    """Every column, image by image."""
    return {name: column.to_pylist() for name, column in rows.carried(range(len(rows))).items()}


def test_columns_of_settings_are_the_settings_of_their_rows():
    rows = filled(read_label_file(str(FAULTY), NAMES))
    assert rows.label.tolist() == [1, 1, 2]
    assert rows.row_settings == ("cfg", "top_k")
    assert values(rows) == {"cfg": [3.0, 3.0, 0.5], "top_k": [5, 5, 7]}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_settings(tmp_path, kind):
    given: dict[str, list] = {
        "label": [0, 1, 2],
        "note": ["x", "y", "z"],
        "seed": [5, 6, 7],
        "draft_steps": [1, 3, 2],
        "temperatures": ["1.2,1", "0.5", "2"] if kind == "csv" else [[1.2, 1.0], [0.5], [2.0]],
        "top_p": [0.5, 1, 0],
    }
    rows = read(tmp_path, kind, [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)])
    assert rows.row_settings == ("top_p", "temperatures", "draft_steps", "seed")
    assert values(rows) == {
        "top_p": [0.5, 1.0, 0.0],
        "temperatures": [[1.2, 1.0], [0.5], [2.0]],
        "draft_steps": [1, 3, 2],
        "seed": [5, 6, 7],
        "seed_index": [0, 0, 0],
        "note": ["x", "y", "z"],
    }
    assert [str(field.type) for field in rows.extra.schema][:2] == ["double", "list<item: double>"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_empty_cell_is_the_jobs_own_value(tmp_path, kind):
    nothing = "" if kind == "csv" else None
    some = {"cfg": 3, "top_k": 5, "temperatures": "2", "draft_steps": 1}
    rows = read(tmp_path, kind, [{"label": 0, **some}, {"label": 1, **dict.fromkeys(some, nothing)}])
    expected = {"cfg": [3.0, 1.5], "top_k": [5, 600], "temperatures": [[2.0], [1.1, 1.0]], "draft_steps": [1, 2]}
    assert values(rows) == expected


def test_guidance_of_rows_by_stage_and_scale(tmp_path):
    given = [
        {"label": 0, "cfg": 3, "cfg_schedule": "off-after:2", "refiner_cfg": 0},
        {"label": 1, "cfg": "", "cfg_schedule": "0, 1, 2,0", "refiner_cfg": ""},
        {"label": 2, "cfg": "", "cfg_schedule": "", "refiner_cfg": ""},
    ]
    rows = read(tmp_path, "csv", given)
    assert values(rows) == {
        "cfg": [3.0, 1.5, 1.5],
        "cfg_schedule": ["off-after:2", "0,1,2,0", "linear"],
        "refiner_cfg": [0.0, 1.5, 1.5],  # the row's own cfg, as the job has none
    }
    found = {(config.cfg, config.cfg_schedule, config.refiner_cfg) for config in rows.guidances(OWN)}
    assert found == set(zip(*values(rows).values(), strict=True))
    assert [(config.top_k, config.temperatures) for config in rows.guidances(OWN)] == [(600, (1.1, 1.0))] * 3


def test_strengths_of_a_row_are_as_many_as_scales(tmp_path):
    message = "row 3: cfg_schedule: expected 4 strengths, one for each scale, got 2"
    with pytest.raises(LabelError, match=message):
        read(tmp_path, "csv", [{"label": 0, "cfg_schedule": each} for each in ("", "constant", "0,1", "0,1")])


@pytest.mark.parametrize(
    ("own", "given", "problem"),
    [
        (OWN, {"cfg": 9, "cfg_schedule": "0,1,2,3"}, "row 2: cfg"),
        (OWN, {"refiner_cfg": 0, "cfg_schedule": "0,1,2,3"}, "row 2: refiner_cfg"),
        (replace(OWN, cfg_schedule="0,1,2,3"), {"cfg": 9}, "row 2: cfg"),
        (replace(OWN, cfg_schedule="0,1,2,3"), {"cfg": 9, "cfg_schedule": ""}, "row 2: cfg"),
        (replace(OWN, cfg_schedule="0,1,2,3"), {"cfg": 9, "cfg_schedule": "constant"}, None),
    ],
)
def test_a_strength_beside_those_of_all_scales_is_refused(tmp_path, own, given, problem):
    rows = [{"label": 0, **dict.fromkeys(given, "")}, {"label": 1, **given}]
    message = f"{problem}: expected none beside the strengths of all scales, 0,1,2,3"
    with pytest.raises(LabelError, match=message) if problem else nullcontext():
        read(tmp_path, "csv", rows, own)


@pytest.mark.parametrize("own", [replace(OWN, cfg=0.0), replace(OWN, cfg=3.0, refiner_cfg=0.0)])
def test_memory_is_counted_for_rows_that_are_guided_at_all_scales(own):
    worst = most_demanding(own, ("cfg_schedule",))
    assert [config.strengths(4) for config in (worst, worst.of_refiner)] == [(max(own.cfg, 1.0),) * 4] * 2
    worst = most_demanding(own, ("cfg", "refiner_cfg"))
    assert [config.strengths(4)[3] > 0 for config in (worst, worst.of_refiner)] == [True, True]


def test_images_of_a_seed_are_counted_in_their_row_and_others_have_the_index_of_the_job(tmp_path):
    given = [
        {"label": 0, "count": 2, "seed": 7},
        {"label": 1, "count": 2, "seed": ""},
        {"label": 2, "count": 2, "seed": 7},
    ]
    rows = read(tmp_path, "csv", given)
    assert values(rows) == {"seed": [7, 7, 9, 9, 7, 7], "seed_index": [0, 1, 2, 3, 0, 1]}
    assert rows.label.tolist() == [0, 0, 1, 1, 2, 2]


def test_columns_of_rows_with_seeds_are_held_once_for_each_row_of_the_file(tmp_path):
    """Long texts of many images once were one piece of more than 2 GiB."""
    given = [{"label": i % 3, "count": 10_000, "seed": i or "", "note": f"{i}" * 1000} for i in range(3)]
    rows = read(tmp_path, "csv", given)
    assert rows.extra is not None and rows.file_row is not None
    assert (len(rows), rows.extra.num_rows) == (30_000, 3)
    assert rows.extra.nbytes < 3100  # the three texts, and some numbers
    assert rows.label.nbytes + rows.file_row.nbytes == 8 * len(rows)
    part = rows.carried(range(9_999, 20_001))
    assert sum(column.nbytes for column in part.values()) > 10_000 * 1000
    assert part["seed"].to_pylist() == [9] + [1] * 10_000 + [2]
    assert part["seed_index"].to_pylist() == [9_999, *range(10_000), 0]
    assert [part["note"][i].as_py()[0] for i in (0, 1, 10_000, 10_001)] == ["0", "1", "1", "2"]


@pytest.mark.parametrize(
    ("given", "digest"),
    [
        (
            [("0", "700", "", "a"), ("1", "0", "3", "b"), ("2", "4000", "4", "c"), ("1", "650", "", "d")],
            "fa46d0215cdfab4b3fd320e8caead8b6f3b2a55a4ce608b934fc2497e93d36d6",
        ),
        (
            [("0", "1", "7", "a"), ("1", "1", "", "b")],
            "70be4b819c4f179207bc8333eebe4795012c51f3fe7750d13e9253a771120470",
        ),
    ],
)
def test_datasets_of_rows_with_seeds_keep_their_identity(tmp_path, given, digest):
    """Digests of when these columns were held image by image."""
    names = ("label", "count", "seed", "note")
    rows = read(tmp_path, "csv", [dict(zip(names, row, strict=True)) for row in given])
    assert rows.digest == digest


def test_settings_are_part_of_the_jobs_identity(tmp_path):
    files = [[{"label": 0, "cfg": cfg, "top_k": 5}] for cfg in ("1.5", "", "2", "2.0")]
    first, own, two, also_two = (read(tmp_path, "csv", rows).digest for rows in files)
    assert first == own  # the job's own value, written out
    assert two == also_two
    assert first != two


@pytest.mark.parametrize(
    ("name", "cell", "expected"),
    [
        ("cfg", "-1", "a number from 0 to 1000"),
        ("cfg", "nan", "a number from 0 to 1000"),
        ("cfg", "inf", "a number from 0 to 1000"),
        ("cfg", "high", "a number from 0 to 1000"),
        ("cfg_schedule", "cosine", "linear, constant, off-after:k or a strength >= 0 for each scale"),
        ("cfg_schedule", "0,-1", "linear, constant, off-after:k or a strength >= 0 for each scale"),
        ("refiner_cfg", "-1", "a number from 0 to 1000"),
        ("top_k", "2.5", "a whole number from 0"),
        ("top_k", "-3", "a whole number from 0"),
        ("top_k", str(2**31), "a whole number from 0"),
        ("top_p", "1.01", "a number from 0 to 1"),
        ("temperatures", "1.1,,1", "numbers >= 0.01"),
        ("temperatures", "0", "numbers >= 0.01"),
        ("draft_steps", "1e30", "a whole number"),
        ("seed", "-1", "a whole number from 0 to 9223372036854775807"),
        ("seed", str(2**63), "a whole number from 0 to 9223372036854775807"),
    ],
)
def test_a_wrong_value_is_named_with_file_row_and_column(tmp_path, name, cell, expected):
    path = write(tmp_path, "csv", [{"label": 0, name: ""}, {"label": 1, name: cell}])
    with pytest.raises(LabelError) as caught:
        read_label_file(path, NAMES)
    assert str(caught.value).startswith(f"--labels: {path}, row 2: {name}: expected {expected}")
    assert str(caught.value).endswith(f", got {cell!r}")


@pytest.mark.parametrize(
    ("name", "cell"), [("cfg", True), ("top_k", False), ("temperatures", [1.0, None]), ("seed", [1])]
)
def test_a_wrong_type_is_refused(tmp_path, name, cell):
    path = write(tmp_path, "jsonl", [{"label": 0, name: cell}])
    with pytest.raises(LabelError, match=f"row 1: {name}: expected"):
        read_label_file(path, NAMES)


@pytest.mark.parametrize("n", [0, 4])
def test_draft_steps_are_those_of_the_pyramid(tmp_path, n):
    message = rf"row 2: draft_steps: expected 1 to 3 \(the pyramid has 4 scales\), got {n}"
    with pytest.raises(LabelError, match=message):
        read(tmp_path, "csv", [{"label": 0, "draft_steps": 3}, {"label": 1, "draft_steps": n}])


@pytest.mark.parametrize("name", [*JOB_SETTINGS, "Batch"])
def test_settings_of_the_whole_job_are_refused_as_columns(tmp_path, name):
    path = write(tmp_path, "csv", [{"label": 0, name: 1}])
    with pytest.raises(LabelError, match=f"column '{name}': expected another name") as caught:
        read_label_file(path, NAMES)
    assert "rename the column if it is data" in (caught.value.hint or "")


def test_every_option_that_changes_an_image_is_a_setting_of_the_row_or_refused():
    options = {*DecodingOptions.model_fields, *ImageOptions.model_fields, "batch", "shard_size", "seed", "drafter"}
    near_miss = "class_names"  # of class_name, refused as such
    assert options - {"spec", "cuda_graphs", near_miss} <= {*JOB_SETTINGS, *ROW_SETTINGS}
    assert {*JOB_SETTINGS, *ROW_SETTINGS} - {"seed_index"} <= set(GenerateSpec.model_fields)


@pytest.mark.parametrize("name", [" cfg", "CFG", "top-k", "Top_P", "temperature", "draft steps"])
def test_near_misses_of_a_setting_are_refused(tmp_path, name):
    path = write(tmp_path, "csv", [{"label": 0, name: 1}])
    with pytest.raises(
        LabelError, match=r"expected '(cfg|top_k|top_p|temperatures|draft_steps)', or a less similar name"
    ) as caught:
        read_label_file(path, NAMES)
    assert f"'my_{name.strip()}' if it is data" in (caught.value.hint or "")
    assert list(values(read(tmp_path, "csv", [{"label": 0, f"my_{name.strip()}": 1}]))) == [f"my_{name.strip()}"]


def test_a_temperature_of_the_users_own_is_carried_under_another_name(tmp_path):
    """Carried as it is, it would seem to say how the image was sampled."""
    path = write(tmp_path, "csv", [{"label": 0, "temperature": 21.5}])
    with pytest.raises(LabelError) as caught:
        read_label_file(path, NAMES)
    assert str(caught.value).endswith("column 'temperature': expected 'temperatures', or a less similar name")
    assert caught.value.hint == (
        "rename it: 'temperatures' if it says how to make the row's images, 'my_temperature' if it is data"
    )
    assert values(read(tmp_path, "csv", [{"label": 0, "air_temperature": 21.5}])) == {"air_temperature": ["21.5"]}


def test_what_says_nothing_about_the_image_is_carried(tmp_path):
    rows = read(tmp_path, "csv", [{"label": 0, "out": "a", "split": "train", "score": "007"}])
    assert rows.row_settings == ()
    assert values(rows) == {"out": ["a"], "split": ["train"], "score": ["007"]}


def test_flags_refuse_what_is_not_finite():
    for wrong in ({"cfg": float("inf")}, {"cfg": float("nan")}, {"temperatures": (1.0, float("inf"))}):
        with pytest.raises(InputError, match="expected"):
            SamplingConfig(**wrong)


def test_memory_is_counted_for_what_rows_may_ask_for(tiny_models):
    models = resolve_models(tiny_models["drafter"], tiny_models["refiner"], tiny_models["vqvae"], False)
    options = GenerateSpec(classes="all", images=4, out="out")
    plain = Workload(models, COLOCATED, 2, SamplingConfig(cfg=0.0, top_k=2, top_p=0.0), 1)
    mixed = replace(plain, row_settings=("cfg", "top_k", "draft_steps"), row_draft_steps=(1, 3))
    assert sampling_to_count(plain, 8) == plain.sampling
    own = sampling_to_count(mixed, 8)
    assert isinstance(own, list)
    assert (len(own), own[0].cfg > 0, own[0].top_k, len(set(own))) == (8, True, 0, 2)
    for name in ("draft", "refine"):
        few, many = all_stages(options, plain, False)[name](8), all_stages(options, mixed, False)[name](8)
        assert many.total > few.total
        assert many.weights == few.weights
