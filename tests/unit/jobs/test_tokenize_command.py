"""`tandem tokenize` before Ray starts: which labels the classes get, and input that is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from support.evaluations import pictures, save_folder
from tandem.errors import InputError
from tandem_jobs.cli import main
from tandem_jobs.labels.class_order import choose_classes
from tandem_jobs.run import block_run
from tandem_workers.pictures.picture_folder import in_small_blocks
from tandem_workers.pictures.source import open_pictures


@pytest.fixture
def folder(tmp_path):
    return save_folder(tmp_path / "pictures" / "train", pictures(6), ("ant", "bee", "cat"))


def test_labels_are_those_of_the_description_beside_the_folder_or_of_a_file(folder, tmp_path):
    assert choose_classes(open_pictures(folder), None).names == ("ant", "bee", "cat")
    description = tmp_path / "pictures" / "pictures.json"
    description.write_text(json.dumps({"classes": ["cat", "dog", "ant", "bee"]}))
    for asked in (None, str(description)):
        found = choose_classes(open_pictures(folder), asked)
        assert (found.names, found.labels) == (("cat", "dog", "ant", "bee"), (2, 3, 0))
    (tmp_path / "names.txt").write_text("ant, emmet\nbee\ncat\ndog\n")
    found = choose_classes(open_pictures(folder), str(tmp_path / "names.txt"))
    assert (found.names, found.labels) == (("ant, emmet", "bee", "cat", "dog"), None)
    assert choose_classes(open_pictures(folder), "numbers").names is None


def test_a_small_folder_has_blocks_for_several_actors(tmp_path):
    source = open_pictures(save_folder(tmp_path / "train", pictures(120, side=2)))
    small = in_small_blocks(source)
    assert (source.num_blocks, small.num_blocks) == (1, 3) and small.identity == source.identity
    blocks = [small.read(block) for block in range(3)]
    assert [len(block) for block in blocks] == [50, 50, 20]
    assert [i for block in blocks for i in block.index] == list(range(120))
    large = replace(source, files=source.files * 10_000)
    assert in_small_blocks(large).num_blocks == large.num_blocks == 1200


def test_folders_may_be_wordnet_ids(tmp_path):
    folder = save_folder(tmp_path / "train", pictures(2), ("n02099601", "n01440764"))
    found = choose_classes(open_pictures(folder), "imagenet")
    assert len(found.names) == 1000 and found.labels == (0, 207)


def test_a_class_that_is_not_in_the_list_or_twice_is_named(folder, tmp_path):
    (tmp_path / "names.txt").write_text("ant\ncat, bee\n")
    with pytest.raises(InputError, match=r"expected a class of .*names.txt for each folder, 'bee', 'cat' share one"):
        choose_classes(open_pictures(folder), str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(InputError, match=r"expected the classes of .*names.txt \('ant', 'bee'\), found also 'cat'"):
        choose_classes(open_pictures(folder), str(tmp_path / "names.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vqvae", "missing.safetensors"], "missing.safetensors"),
        (["--vqvae", "{drafter}"], "vqvae"),
        (["--patch-nums", "4,2"], "patch_nums: expected two or more ascending sizes"),
        (["--views", "0"], "--views: expected"),
        (["--augment", "blur"], "--augment: expected"),
        (["--on-error", "ignore"], "--on-error: expected"),
        (["--class-names", "missing.txt"], "--class-names: cannot read missing.txt"),
        (["--out", "{data}/tokens"], "OUT: expected a place apart from DATA"),
        (["--out", "{file}"], "expected a directory"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    options, message, folder, tmp_path, tiny_models, capsys, monkeypatch
):
    def started(*_):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(block_run, "open_session", started)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    values = {"drafter": tiny_models["drafter"], "data": folder, "file": str(tmp_path / "file")}
    given = [option.format(**values) for option in options]
    assert main(["tokenize", folder, "--out", str(tmp_path / "out"), *given]) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.out == "" and len(errors) == 1 and message in errors[0] and not (tmp_path / "out").exists()
