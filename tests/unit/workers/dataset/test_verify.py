"""`tandem verify` finds every damage; after `--repair` the same command makes the undisturbed dataset."""

import json
import re

import numpy as np
import pytest

from support.damage import ENTRY, TAR, content, cut, flip, lose, make, put, reseal, write
from tandem.errors import OutputError
from tandem_jobs.cli import main
from tandem_workers.dataset.aside import DAMAGED
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.repair import repair
from tandem_workers.dataset.seal import open_sealed, seal
from tandem_workers.dataset.verify import verify
from tandem_workers.storage.local_store import LocalStore
from tandem_workers.storage.store import Store

DAMAGES = {
    "entry flipped": (flip(ENTRY), f"{ENTRY} in .* is damaged"),
    "entry cut": (cut(ENTRY), f"{ENTRY} in .* is"),
    "entry of another shard": (put(ENTRY, b""), f"{ENTRY} in .* is not JSON"),
    "entry lost": (lose(ENTRY), r"1 of 3 shards are missing, such as \[1\]"),
    "labels of an entry": (reseal(ENTRY, labels={"0": 4}), "shard 1: label 0: the entry counts 4, its files hold 1"),
    "rows of an entry": (reseal(ENTRY, rows=5), "shard 1: rows, first and last index and bytes: expected"),
    "entry names another file": (
        lambda store: write(store, ENTRY, store.read("manifest/00000.json")),
        "is that of",
    ),
    "surplus entry": (
        lambda store: write(store, "manifest/00007.json", seal(open_sealed(store.read(ENTRY), ()) | {"shard": 7})),
        "manifest/00007.json: expected none of this number, of 3",
    ),
    "shard flipped": (flip(TAR), f"{TAR}: expected sha256"),
    "shard cut": (cut(TAR), f"{TAR}: expected .* bytes, found"),
    "shard lost": (lose(TAR), f"{TAR}: missing"),
    "_SUCCESS flipped": (flip("_SUCCESS"), "_SUCCESS is damaged"),
    "_SUCCESS empty": (put("_SUCCESS", b""), "_SUCCESS is not JSON"),
    "_SUCCESS a list": (put("_SUCCESS", b"[]"), "_SUCCESS is not a JSON object"),
    "_SUCCESS lost": (lose("_SUCCESS"), "_SUCCESS is missing"),
    "_SUCCESS rows": (reseal("_SUCCESS", rows=9), "_SUCCESS: rows is 9, by the manifest entries 10"),
    "_SUCCESS labels": (reseal("_SUCCESS", labels={"0": 10}), "_SUCCESS counts 10 images of label 0, the manifest ent"),
    "_SUCCESS labels of other types": (reseal("_SUCCESS", labels=[1]), "_SUCCESS does not count labels"),
    "_SUCCESS failed": (
        reseal("_SUCCESS", failed_shards={"1": "x"}),
        r"counts shards \[1\] as failed",
    ),
    "_SUCCESS failed of no plan": (reseal("_SUCCESS", failed_shards={"8": ""}), r"counts shards \[8\] as failed, of 3"),
    "_SUCCESS of another epoch": (reseal("_SUCCESS", epoch=3), "_SUCCESS: epoch is 3, by the manifest entries 0"),
    "card flipped": (flip("README.md"), "README.md: expected sha256"),
    "card lost": (lose("README.md"), "README.md: missing"),
    "entry and shard": (lambda store: (flip(ENTRY)(store), flip(TAR)(store)), f"{ENTRY} in .* is damaged"),
    "entry lost, shard flipped": (lambda store: (lose(ENTRY)(store), flip(TAR)(store)), "1 of 3 shards are missing"),
    "a shard too many": (put("shards/00003.tar"), "1 files have names of shards but are in no entry"),
    "a file too many": (put("shards/00001-0-ab12cd34.tar"), "1 files have names of shards but are in no entry"),
    "job.json flipped": (flip("job.json"), "job.json in .* is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_healed(tmp_path, name, capsys):
    damage, problem = DAMAGES[name]
    store = make(tmp_path / "out")
    undisturbed = content(store)
    assert main(["verify", store.uri]) == 0
    damage(store)
    capsys.readouterr()
    assert main(["verify", store.uri]) == 1
    said = capsys.readouterr()
    assert any(re.search(problem + r".*\(to heal it: ", line) for line in json.loads(said.out)["problems"]), said.out
    assert main(["verify", store.uri, "--repair"]) == 0
    assert content(make(tmp_path / "out")) == undisturbed
    assert main(["verify", store.uri]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["parquet", "folder"])
def test_every_format_is_healed(tmp_path, name):
    store = make(tmp_path / "out", name)
    undisturbed = content(store)
    for entry in Manifest(store).entries()[:2]:
        flip(entry.files[0].path)(store)
        lose(entry.files[-1].path)(store)
    verdict = verify(store)
    assert len(verdict.problems) == {"parquet": 2, "folder": 4}[name]
    repair(store, verdict)
    assert content(make(tmp_path / "out", name)) == undisturbed


def test_flips_of_every_record_are_found(tmp_path):
    store, rng = make(tmp_path / "out"), np.random.default_rng(0)
    for path in ("job.json", ENTRY, "_SUCCESS", "README.md"):
        data = store.read(path)
        for bit in rng.choice(len(data) * 8, min(60, len(data) * 8), replace=False).tolist():
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            write(store, path, bytes(damaged))
            assert verify(store).problems, (path, bit)
        write(store, path, data)
    assert not verify(store).problems


def test_a_repair_that_is_cut_short_leaves_no_dataset_that_seems_complete(tmp_path, monkeypatch):
    store = make(tmp_path / "out")
    flip(TAR)(store)
    verdict = verify(store)
    kept = []

    def stop_after_first(self: Store, path: str) -> None:
        kept.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalStore, "remove", stop_after_first)
    with pytest.raises(KeyboardInterrupt):
        repair(store, verdict)
    assert kept == ["_SUCCESS"]


def test_nothing_is_lost_by_a_repair(tmp_path):
    store = make(tmp_path / "out")
    for _ in range(2):
        flip(TAR)(store)
        repair(store, verify(store))
        make(tmp_path / "out")
    kept = [path for path in store.list_files(DAMAGED) if path.endswith(TAR)]
    assert len(kept) == 1  # the same damage twice
    assert sum(a != b for a, b in zip(store.read(kept[0]), store.read(TAR), strict=True)) == 1


class ForgetfulStore(LocalStore):
    """Lists files that it cannot read, as S3 may."""

    def list_files(self, folder: str = "") -> list[str]:
        return sorted([*super().list_files(folder), *([ENTRY] if folder in ("", "manifest") else [])])


def test_an_entry_that_is_listed_and_not_there_is_a_problem(tmp_path):
    """Its shard went unchecked, and verify found nothing wrong."""
    store = make(tmp_path / "out")
    store.remove(ENTRY)
    (problem,) = [p for p in verify(ForgetfulStore(store.uri)).problems if p.text.startswith(ENTRY)]
    assert "listed, but missing when read" in problem.text and problem.leftovers == (ENTRY,)


def test_records_of_older_versions_are_counted(tmp_path):
    store = make(tmp_path / "out")
    for path in ("job.json", ENTRY, "_SUCCESS"):
        write(store, path, json.dumps(open_sealed(store.read(path), ()), indent=2).encode())
    verdict = verify(store)
    assert (verdict.unsealed, verdict.problems) == (3, [])


def test_one_problem_is_the_line_itself(tmp_path, capsys):
    store = make(tmp_path / "out")
    for path, many in ((TAR, ""), ("shards/00000.tar", "2 problems, the first: ")):
        store.remove(path)
        assert main(["verify", store.uri]) == 1
        assert f"error: {store.uri}: {many}{path}: missing\n" in capsys.readouterr().err


def test_a_place_that_refuses_an_entry_is_not_told_to_lose_it(tmp_path, capsys, monkeypatch):
    """`ls` after a 403 advised to remove the entry."""
    store, read = make(tmp_path / "out"), LocalStore.read

    def forbid(self: Store, path: str) -> bytes:
        if path == ENTRY:
            raise OutputError(f"cannot read {path}: AccessDenied", "needs s3:GetObject")
        return read(self, path)

    monkeypatch.setattr(LocalStore, "read", forbid)
    for command in (["ls"], ["verify"], ["verify", "--repair"]):
        assert main([*command, store.uri]) == 2
        assert "cannot read manifest/00001.json: AccessDenied\nhint: needs s3:GetObject" in capsys.readouterr().err
    monkeypatch.undo()
    assert verify(store).problems == []


def test_what_stands_in_the_way_of_a_file_is_a_line(tmp_path, capsys):
    """A folder where an entry names a file; a local file may also be unreadable or on a broken disk."""
    store = make(tmp_path / "out")
    store.remove(TAR)
    (store.root / TAR / "x").mkdir(parents=True)
    for command in (["ls"], ["verify"]):
        main([*command, store.uri])
    assert "error: cannot read" in (said := capsys.readouterr().err) and "Is a directory" in said
