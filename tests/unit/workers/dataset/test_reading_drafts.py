"""`tandem refine` reads exactly what `tandem draft` wrote, or refuses it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.sample_drafts import STEPS, drafts_of, prefix_shard
from support.tiny_models import CLASS_NAMES
from tandem.errors import InputError, JobError, OutputError
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.drafts import DraftFormat, Drafts, open_drafts
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.seal import open_sealed, seal
from tandem_workers.dataset.shards import ShardPlan

SHARD, ENTRY = "shards/00001.parquet", "manifest/00001.json"
FLIPS = {SHARD: 2596, ENTRY: 500}


@pytest.fixture(scope="module")
def drafts(tmp_path_factory) -> Drafts:
    return drafts_of(tmp_path_factory.mktemp("drafts") / "drafts", 7)


@pytest.fixture(autouse=True)
def undamaged(drafts):
    kept = {path: drafts.store.read(path) for path in drafts.store.list_files()}
    yield
    for path, data in kept.items():
        (drafts.store.root / path).write_bytes(data)


def test_undamaged_drafts_are_read(drafts):
    shard, expected = drafts.read(1, STEPS), prefix_shard(1, ShardPlan(7, 4))
    assert np.array_equal(shard.prefix, expected.prefix) and np.array_equal(shard.label, expected.label)
    assert shard.extra["note"].to_pylist() == ["no 4", "no 5", "no 6"]
    assert drafts.read(1, 1).prefix.shape == (3, 1) and drafts.extra_schema().names == ["note"]


def test_drafts_of_edits_also_have_the_ids_of_the_pictures_and_the_cells(tmp_path):
    drafts, expected = drafts_of(tmp_path / "drafts", 7, edit={"pictures": "p"}), prefix_shard(1, ShardPlan(7, 4), True)
    for shard in (drafts.read(1, STEPS), drafts.read(1, 1)):
        assert np.array_equal(shard.source, expected.source) and np.array_equal(shard.drawn, expected.drawn)
    assert drafts.edits == {"pictures": "p"} and drafts.drafter.class_names == CLASS_NAMES
    assert drafts.extra_schema().names == ["note"]


def test_drafts_of_edits_without_their_pictures_ids_are_refused(tmp_path):
    drafts = drafts_of(tmp_path / "drafts", 7, edit={"pictures": "p"})
    rewrite(drafts, lambda table: table.drop_columns(["source_tokens"]))
    with pytest.raises(JobError, match="expected columns"):
        drafts.read(1, STEPS)


@pytest.mark.parametrize("path", FLIPS)
def test_flipped_bits_of_a_draft_are_refused(drafts, path):
    data = drafts.store.read(path)
    for bit in np.linspace(0, len(data) * 8 - 1, FLIPS[path]).astype(int).tolist():
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (drafts.store.root / path).write_bytes(damaged)
        with pytest.raises(JobError, match=f"{path}") as caught:
            drafts.read(1, STEPS)
        assert "tandem verify --repair" in caught.value.hint


def test_flipped_bits_of_the_job_of_drafts_is_refused(drafts):
    data = drafts.store.read("job.json")
    for bit in range(0, len(data) * 8, 5):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (drafts.store.root / "job.json").write_bytes(damaged)
        with pytest.raises(OutputError, match=r"job\.json in .* is "):
            open_drafts(drafts.store)


def test_drafts_that_others_replace_are_called_that(tmp_path):
    """The line spoke of "this place" and of another --out, as if that of the images had been taken."""
    drafts = drafts_of(tmp_path / "drafts", 7)
    open_job(drafts.store, {**drafts.identity.fields, "rows": 3}, {}, overwrite=True)
    with pytest.raises(OutputError, match=r"drafts in .*: another job has taken this place \(--overwrite\)") as caught:
        drafts.read(1, STEPS)
    assert "refine its drafts" in caught.value.hint


def rewrite(drafts: Drafts, change, labels=None) -> None:
    """Other rows under the hash that the entry has: as an older version could commit them."""
    path = drafts.store.root / SHARD
    pq.write_table(change(pq.read_table(path)), path)
    data = path.read_bytes()
    values = open_sealed(drafts.store.read(ENTRY), ())
    found = drafts.store.put_once("shards/00009.parquet", data)
    drafts.store.remove("shards/00009.parquet")
    values["files"][0] |= {"size_bytes": found.size_bytes, "sha256": found.sha256}
    values["labels"] = labels or values["labels"]
    (drafts.store.root / ENTRY).write_bytes(seal(values))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.slice(1), "expected the indices of shard 1"),
        (lambda t: t.take([1, 0, 2]), "expected the indices of shard 1"),
        (lambda t: t.set_column(1, "label", pa.array([0, 1, 1], pa.int32())), "expected the labels of its manifest"),
        (lambda t: t.set_column(0, "index", pa.array(["4", "5", "6"])), "expected columns"),
        (lambda t: t.set_column(2, "tokens", pa.array(["a", "b", "c"])), "expected columns"),
        (lambda t: t.drop_columns(["tokens"]), "expected columns"),
        (lambda t: t.append_column("tokens", t["tokens"]), "Multiple matches"),
    ],
)
def test_rows_that_are_not_those_of_the_shard_are_refused(drafts, change, problem):
    rewrite(drafts, change)
    with pytest.raises(JobError, match=f"{SHARD}: {problem}"):
        drafts.read(1, STEPS)


@pytest.mark.parametrize("column", ["seed", "class_name", "image", "draft_steps"])
def test_columns_of_the_dataset_itself_are_refused(drafts, column):
    """Older versions took them along, and images got values that are not theirs."""
    (drafts.store.root / ENTRY.replace("1", "0")).write_bytes(b"{}")
    rewrite(drafts, lambda t: t.append_column(column, t["index"]))
    with pytest.raises(InputError, match=f"--drafts: column '{column}': expected none of this name"):
        drafts.extra_schema()


def test_missing_parts_are_named(drafts):
    drafts.store.remove(SHARD)
    with pytest.raises(JobError, match=f"{SHARD}: missing"):
        drafts.read(1, STEPS)
    drafts.store.remove(ENTRY)
    with pytest.raises(JobError, match="shard 1 has no manifest entry"):
        drafts.read(1, STEPS)
    with pytest.raises(InputError, match=r"1 of 2 shards of .* are missing"):
        open_drafts(drafts.store)


WRONG = [
    ("identity.rows", "7"),
    ("identity.rows", -1),
    ("identity.rows", 1e18),
    ("identity.rows", 10**30),
    ("identity.shard_size", 0),
    ("identity.weights_sha256", None),
    ("identity.weights_sha256.vqvae", 7),
    ("identity.decoding", []),
    ("identity.decoding.seed", "x"),
    ("identity.decoding.seed", None),
    ("identity.decoding.draft_steps", 99),
    ("identity.decoding.sampling", {"cfg": "much"}),
    ("identity.decoding.sampling", {"more": 1}),
    ("identity.decoding.sampling", []),
    ("identity.decoding.row_settings", 3),
    ("identity.decoding.row_settings", ["cfg", "note"]),
    ("info.drafter", None),
    ("info.drafter.source", None),
    ("info.drafter.config", None),
    ("info.drafter.config", {"depth": "x"}),
    ("info.drafter.config.patch_nums", None),
    ("info.class_names", [1, 2, 3, 4]),
    ("info.class_names", {}),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_job_of_other_values_is_refused_in_one_line(drafts, field, value):
    job = open_sealed(drafts.store.read("job.json"), ())
    place, *names = job, *field.split(".")
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    (drafts.store.root / "job.json").write_text(json.dumps(job))  # as an older version wrote it
    with pytest.raises((InputError, OutputError)) as caught:
        open_drafts(drafts.store)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_shards_of_older_versions_are_read(drafts):
    """Names of list items were others, entries had no seal."""
    rewrite(drafts, lambda t: t)
    values = open_sealed(drafts.store.read(ENTRY), ())
    (drafts.store.root / ENTRY).write_text(json.dumps(values, indent=2) + "\n")
    assert len(drafts.read(1, STEPS)) == 3
    assert Manifest(drafts.store).entry(1).rows == 3
    ((_, data),) = DraftFormat().files(prefix_shard(1, ShardPlan(7, 4)))
    assert data != (drafts.store.root / SHARD).read_bytes()
