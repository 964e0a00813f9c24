"""Records of the job, and records of every kind of wrong value: repaired, or a line."""

import json
from pathlib import Path

import numpy as np
import pytest

from support.damage import ENTRY, IDENTITY, content, flip, make, write
from support.sample_shards import SIZE, sample_dataset, sample_format
from tandem.errors import JobError, OutputError
from tandem_jobs.cli import main
from tandem_workers.dataset.aside import DAMAGED
from tandem_workers.dataset.card import CardInfo, closing_files
from tandem_workers.dataset.job_record import read_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.repair import heal_job, repair
from tandem_workers.dataset.seal import open_sealed, seal
from tandem_workers.dataset.verify import verify
from tandem_workers.storage.local_store import LocalStore


def test_the_record_of_a_later_epoch_is_restored_where_it_is_lost(tmp_path, capsys):
    make(tmp_path / "out")
    store = make(tmp_path / "out", overwrite=True)
    undisturbed = content(store)
    for path in ("job.json", "overwrites/00001.json"):
        store.remove(path)
        assert main(["verify", store.uri]) == 1
        assert f"{path} is missing" in capsys.readouterr().err
        if path != "job.json":
            with pytest.raises(OutputError, match=f"{path} in .* is missing"):
                make(tmp_path / "out")
        assert main(["verify", store.uri, "--repair"]) == 0
        assert content(store) == undisturbed


def test_files_of_an_epoch_without_a_record_are_left_alone(tmp_path, capsys):
    """They may be the dataset itself, whose records were lost."""
    make(tmp_path / "out")
    dead = (tmp_path / "out/job.json").read_bytes()
    store = make(tmp_path / "out", overwrite=True)
    store.remove("overwrites/00001.json")
    write(store, "job.json", dead)
    kept = store.list_files()
    assert main(["verify", store.uri, "--repair"]) == 1
    assert "are of an epoch after 0 that has no record" in capsys.readouterr().err
    assert set(kept) - set(store.list_files()) <= {"_SUCCESS"}


@pytest.mark.parametrize("damaged", [["job.json"], ["overwrites/00001.json"], ["job.json", "overwrites/00001.json"]])
def test_the_record_of_a_later_epoch_is_healed(tmp_path, damaged, capsys):
    make(tmp_path / "out")
    store = make(tmp_path / "out", overwrite=True)
    undisturbed = content(store)
    assert verify(store).problems == []
    for path in damaged:
        flip(path)(store)
    assert main(["verify", store.uri]) == 1
    assert main(["verify", store.uri, "--repair"]) == 0
    assert content(store) == undisturbed and main(["verify", store.uri]) == 0
    assert ("mended by its own hash" in capsys.readouterr().err) == (len(damaged) == 2)


def test_a_record_of_a_dead_epoch_mends_none_of_the_living_one(tmp_path):
    dead = make(tmp_path / "out").read("job.json")
    store = make(tmp_path / "out", overwrite=True)
    undisturbed = content(store)
    write(store, "job.json", dead)
    for path in ("job.json", "overwrites/00001.json"):
        flip(path)(store)
    assert heal_job(store) == [f"{path}: mended by its own hash" for path in ("job.json", "overwrites/00001.json")]
    assert content(store) == undisturbed


def test_a_repair_of_the_record_that_is_cut_short_leaves_a_record_to_repair(tmp_path, monkeypatch):
    store = make(tmp_path / "out")
    undisturbed = content(store)
    flip("job.json")(store)

    def stop(self: LocalStore, path: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            heal_job(store)
    assert heal_job(store) == ["job.json: mended by its own hash"]
    assert content(store) == undisturbed


def test_files_of_dead_epochs_are_removed(tmp_path):
    make(tmp_path / "out")
    late = Path(tmp_path / "out/shards/00000.tar").read_bytes()
    store = make(tmp_path / "out", overwrite=True)
    write(store, "shards/00000.tar", late)
    write(store, "manifest/00000.json", b"{}")
    verdict = verify(store)
    assert [p.text for p in verdict.problems] == ["2 files are of an epoch before 1, such as manifest/00000.json"]
    assert repair(store, verdict).removed == ["manifest/00000.json", "shards/00000.tar"]
    make(tmp_path / "out")
    assert verify(store).problems == []


def test_a_job_beyond_repair_can_be_overwritten(tmp_path, capsys):
    store = make(tmp_path / "out")
    write(store, "job.json", store.read("job.json")[:50])
    assert main(["verify", store.uri, "--repair"]) == 1
    assert "job.json: beyond repair: the same command with --overwrite" in capsys.readouterr().err
    with pytest.raises(OutputError, match="holds another job") as caught:
        make(tmp_path / "out")
    assert "--overwrite" in caught.value.hint
    assert verify(make(tmp_path / "out", overwrite=True)).problems == []
    assert len(store.list_files(DAMAGED)) == 1


def test_a_lost_job_of_epoch_0_can_be_overwritten(tmp_path, capsys):
    store = make(tmp_path / "out")
    store.remove("job.json")
    assert main(["verify", store.uri]) == 2
    assert "hint: if it was one: tandem verify --repair" in capsys.readouterr().err
    assert main(["verify", store.uri, "--repair"]) == 1
    assert verify(make(tmp_path / "out", overwrite=True)).problems == []


def test_a_job_of_a_later_epoch_without_any_record_can_be_overwritten(tmp_path):
    make(tmp_path / "out")
    store = make(tmp_path / "out", overwrite=True)
    for path in ("job.json", "overwrites/00001.json"):
        write(store, path, b"")
    assert main(["verify", store.uri, "--repair"]) == 1
    assert read_job(store)["epoch"] == 1
    assert verify(make(tmp_path / "out", overwrite=True)).problems == []
    assert read_job(store)["epoch"] == 2


@pytest.mark.parametrize("seed", range(16))
def test_whatever_is_damaged_the_same_command_makes_the_undisturbed_dataset(tmp_path, seed):
    """Files of two kinds of records, shards and closing files, one to three at once."""
    rng = np.random.default_rng(seed)
    name = str(rng.choice(["webdataset", "parquet", "folder"]))
    store = make(tmp_path / "out", name)
    undisturbed = content(store)
    files = [path for path in store.list_files() if path != "job.json"]
    for path in rng.choice(files, int(rng.integers(1, 4)), replace=False).tolist():
        data, at = store.read(path), int(rng.integers(0, 40))
        kinds = (data[:at], b"", data + b"x", rng.bytes(100), data[:at] + b"?" * 9 + data[at + 9 :], None)
        if (kind := kinds[rng.integers(len(kinds))]) is None:
            store.remove(path)
        else:
            write(store, path, kind)
    assert main(["verify", store.uri]) == 1
    assert main(["verify", store.uri, "--repair"]) == 0
    assert content(make(tmp_path / "out", name)) == undisturbed
    assert main(["verify", store.uri]) == 0


def test_places_of_others_are_left_as_they_are(tmp_path):
    store = LocalStore(str(tmp_path / "out"))
    write(store, "job.json", b'{"name": "another tool"}')
    assert main(["verify", store.uri, "--repair"]) == 1
    assert store.list_files() == ["job.json"] and heal_job(store) == []
    assert main(["verify", str(tmp_path / "nothing"), "--repair"]) == 2


# ---- damage of every kind

VALUES = [None, True, -1, 0, 10**30, 1.5, "x", "", [], {}, [1], {"a": 1}, "NaN", "deep", "long"]


def as_text(values: dict, field: str, value: object) -> bytes:
    nest = {"deep": "[" * 50_000 + "]" * 50_000, "long": "9" * 5000, "NaN": "NaN"}
    text = nest.get(value, f'"{value}"') if isinstance(value, str) else json.dumps(value)
    return json.dumps({**values, field: "@"}).replace('"@"', text).encode()


@pytest.mark.parametrize("path", ["job.json", ENTRY, "_SUCCESS"])
def test_no_damage_is_a_traceback(tmp_path, path, capsys):
    """Records as an older version writes them, without a seal, and fields with values of all kinds."""
    store, rng = make(tmp_path / "out"), np.random.default_rng(0)
    whole = open_sealed(store.read(path), ())
    values = [as_text(whole, field, value) for field in whole for value in VALUES]
    if path == "job.json":
        several = [{**IDENTITY, name: value} for name in ("rows", "shard_size") for value in VALUES]
        values += [json.dumps(whole | {"identity": identity}).encode() for identity in several]
    values = [values[i] for i in rng.choice(len(values), 24, replace=False)]
    for value in [b"", b"\xff\xfe", b"null", b"[]", b"{", b"[" * 50_000, *values]:
        write(store, path, value)
        for command in (["verify"], ["ls"], ["verify", "--repair"]):
            code = main([*command, store.uri])
            said = capsys.readouterr().err
            assert code in (0, 1, 2) and ("error: " in said) == (code != 0), (value[:80], said)
        for aside in store.list_files(DAMAGED):  # undo the repair
            write(store, aside.split("/", 2)[2], store.read(aside))
            store.remove(aside)
        write(store, path, seal(whole))


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("name", ["webdataset", "parquet", "folder"])
def test_a_dataset_with_an_unreadable_file_does_not_close_by_a_traceback(tmp_path, name, lost):
    store = sample_dataset(tmp_path / "out", name)
    entries = Manifest(store).entries()
    info = CardInfo(sample_format(name), SIZE, {}, {}, "tandem generate", "tandem 0.0")
    for path in {entries[0].files[0].path, entries[0].files[-1].path}:
        data = store.read(path)
        write(store, path, data[:100])
        if lost:
            store.remove(path)
        with pytest.raises(JobError, match=f"{path} in .* is damaged") as caught:
            closing_files(store, info, 0, entries, {})
        assert "tandem verify --repair" in caught.value.hint
        write(store, path, data)


def test_tables_of_a_folder_are_put_together_from_what_was_committed(tmp_path):
    store = sample_dataset(tmp_path / "out", "folder")
    entries = Manifest(store).entries()
    info = CardInfo(sample_format("folder"), SIZE, {}, {}, "tandem generate", "tandem 0.0")
    flip("rows/00002.parquet", 0.01)(store)
    with pytest.raises(JobError, match=r"rows/00002\.parquet in .* is damaged: DamagedError: expected sha256"):
        closing_files(store, info, 0, entries, {})
