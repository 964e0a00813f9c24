"""`tandem verify` finds every damage; after `--repair` the same command makes the undisturbed dataset."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sample_shards import PLAN, encoded_shard, sample_format

from jobs.cli import main
from tandem.errors import OutputError
from workers import layout
from workers.closing import close_dataset
from workers.commit import store_shard
from workers.manifest import Manifest
from workers.place import open_job
from workers.repair import DAMAGED, heal_job, repair
from workers.seal import open_sealed, seal
from workers.store import LocalStore, Store
from workers.verify import verify

IDENTITY = {"rows": PLAN.num_rows, "shard_size": PLAN.shard_size, "labels": "a" * 64}
SHARDS = [encoded_shard(shard, PLAN) for shard in range(PLAN.num_shards)]


def make(root: Path | str, name: str = "webdataset", overwrite: bool = False) -> Store:
    """What a job does, however far it has come."""
    store = LocalStore(str(root))
    job = open_job(store, IDENTITY, {"command": "tandem generate"}, overwrite)
    store.remember_job(job.path)
    manifest = Manifest(store, job.epoch)
    for shard in SHARDS:
        if shard.shard not in job.committed:
            shard.seconds = {"draft": 0.5}
            store_shard(store, manifest, shard, sample_format(name), PLAN)
    close_dataset(manifest, PLAN.num_shards, render=lambda entries, failed: {layout.CARD: b"# a card\n"})
    return store


def content(store: Store) -> dict[str, bytes]:
    """All files but those set aside. Entries and `_SUCCESS` without seconds, which differ."""
    found = {path: store.read(path) for path in store.list_files() if not path.startswith(DAMAGED)}
    for path in [path for path in found if path.startswith("manifest/") or path == layout.SUCCESS]:
        found[path] = json.dumps(open_sealed(found[path], ()) | {"seconds": None}).encode()
    return found


def write(store: Store, path: str, data: bytes) -> None:
    target = Path(store.uri, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def flip(path: str, at: float = 0.5) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        data = bytearray(store.read(path))
        data[int(len(data) * at)] ^= 1
        write(store, path, bytes(data))

    return change


def cut(path: str) -> Callable[[Store], None]:
    return lambda store: write(store, path, store.read(path)[:-30])


def lose(path: str) -> Callable[[Store], None]:
    return lambda store: store.remove(path)


def put(path: str, data: bytes = b"{}") -> Callable[[Store], None]:
    return lambda store: write(store, path, data)


def reseal(path: str, **values: object) -> Callable[[Store], None]:
    """Other values under a seal that fits."""
    return lambda store: write(store, path, seal(open_sealed(store.read(path), ()) | values))


ENTRY, TAR = "manifest/00001.json", "shards/00001.tar"
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
    "another epoch": (put("shards/00001-4.tar"), "1 files are of another epoch than 0, such as shards/00001-4.tar"),
    "a file too many": (put("shards/00001-0-ab12cd34.tar"), "1 files have names of shards and no entry names them"),
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
    repair(store, verdict.problems)
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
    problems = verify(store).problems
    kept = []

    def stop_after_first(self: Store, path: str) -> None:
        kept.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalStore, "remove", stop_after_first)
    with pytest.raises(KeyboardInterrupt):
        repair(store, problems)
    assert kept == ["_SUCCESS"]


def test_nothing_is_lost_by_a_repair(tmp_path):
    store = make(tmp_path / "out")
    for _ in range(2):
        flip(TAR)(store)
        repair(store, verify(store).problems)
        make(tmp_path / "out")
    kept = [path for path in store.list_files(DAMAGED) if path.endswith(TAR)]
    assert len(kept) == 1  # the same damage twice
    assert sum(a != b for a, b in zip(store.read(kept[0]), store.read(TAR), strict=True)) == 1


class ForgetfulStore(LocalStore):
    """Lists what it cannot read, as S3 may."""

    def list_files(self, folder: str = "") -> list[str]:
        return sorted([*super().list_files(folder), *([ENTRY] if folder in ("", "manifest") else [])])


def test_an_entry_that_is_listed_and_not_there_is_a_problem(tmp_path):
    """Its shard went unchecked, and verify found nothing wrong."""
    store = make(tmp_path / "out")
    store.remove(ENTRY)
    (problem,) = [p for p in verify(ForgetfulStore(store.uri)).problems if p.text.startswith(ENTRY)]
    assert "listed, and not there when it is read" in problem.text and problem.leftovers == (ENTRY,)


def test_records_of_older_versions_are_counted(tmp_path):
    store = make(tmp_path / "out")
    for path in ("job.json", ENTRY, "_SUCCESS"):
        write(store, path, json.dumps(open_sealed(store.read(path), ()), indent=2).encode())
    verdict = verify(store)
    assert (verdict.unsealed, verdict.problems) == (3, [])


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


# ---- the job's record


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


def test_files_of_dead_epochs_are_removed(tmp_path):
    make(tmp_path / "out")
    late = Path(tmp_path / "out/shards/00000.tar").read_bytes()
    store = make(tmp_path / "out", overwrite=True)
    write(store, "shards/00000.tar", late)
    write(store, "manifest/00000.json", b"{}")
    verdict = verify(store)
    assert [p.text for p in verdict.problems] == ["2 files are of another epoch than 1, such as manifest/00000.json"]
    assert repair(store, verdict.problems).removed == ["manifest/00000.json", "shards/00000.tar"]
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
