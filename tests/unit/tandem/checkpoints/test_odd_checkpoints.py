"""What is no weights file, or an odd one, is named as what it is, in one line."""

import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.tiny_models import CLASS_NAMES
from support.wrapped_files import published_tensors, same, save, var
from tandem.checkpoints.weights import load_var, open_checkpoint, save_checkpoint
from tandem.errors import CheckpointError
from tandem_jobs.cli import main

__all__ = ["var"]  # a fixture
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
        (b"\n <html lang='en'>", "a web page"),
        (LFS, "a git-LFS pointer"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "an XML answer"),
        (b'{"error": "Repository not found"}', "JSON text"),
        (b"\x1f\x8b\x08\x00", "a gzip archive"),
        (b"PK\x03\x04" + b"\0" * 90, "cut off: a corrupt torch file"),
        (b"\x00" * 64, "neither a torch file nor safetensors"),
        (b"\x80", "neither a torch file nor safetensors"),
        (b"\x80\x02}q\x00.", "a corrupt torch file"),
        (b"\x80\x04}\x94.", "a corrupt torch file"),
        ((1 << 20).to_bytes(8, "little") + b'{"a"', "cut off: .* expected 1,048,584 bytes, got 12"),
        ((8).to_bytes(8, "little") + b"{" + b"x" * 99, "not a readable safetensors file"),
    ],
)
def test_what_is_no_weights_file_is_called_what_it_is(tmp_path, capsys, suffix, content, message):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert caught.value.hint
    assert main(["inspect", str(path)]) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 2 and "weights_only" not in shown  # torch's advice to read without any check


def test_archives_of_other_kinds_are_called_what_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("model/readme.txt", "text")
    with pytest.raises(CheckpointError, match=r"a zip archive of other files \(model/readme\.txt\)"):
        open_checkpoint(tmp_path / "a.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "s.pth")
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        open_checkpoint(tmp_path / "s.pth")


def test_a_file_is_known_by_its_content_not_its_name(tmp_path, var):
    save_file(published_tensors(var), tmp_path / "x.pth")
    torch.save(published_tensors(var), tmp_path / "x.safetensors")
    assert same(load_var(tmp_path / "x.pth", preparation=None), var)
    assert same(load_var(tmp_path / "x.safetensors", preparation=None), var)


@pytest.mark.parametrize(
    "loaded",
    [
        {1: torch.zeros(2), "a": torch.zeros(2), None: 3},
        {"word_embed.weight": torch.zeros(3)},
        {"word_embed.weight": torch.zeros(8, 4), "blocks.0.attn.scale_mul_1H11": torch.zeros(1, 0, 1, 1)},
        {"encoder.conv_in.weight": torch.zeros(3)},
        {"word_embed.weight": "text"},
        [torch.zeros(2)],
        torch.zeros(2),
        torch.nn.Linear(1, 1),
        "text",
        None,
    ],
    ids=repr,
)
def test_torch_files_of_other_things_are_one_line(tmp_path, capsys, loaded):
    path = save(tmp_path, loaded)
    assert main(["inspect", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {path}: ") and len(lines) <= 2
    assert "weights_only" not in lines[-1] and "untrusted" not in lines[-1]


@pytest.mark.parametrize("value", [float("nan"), 1e9, -1])
def test_levels_out_of_range_are_one_line(tmp_path, var, value):
    tensors = published_tensors(var)
    tensors["lvl_1L"] = torch.full((1, 30), value)
    with pytest.raises(CheckpointError, match="lvl_1L: expected 30 levels below 4"):
        load_var(save(tmp_path, tensors))


def test_sparse_tensors_are_named(tmp_path, var):
    tensors = published_tensors(var) | {"head.bias": var.head.bias.detach().to_sparse()}
    with pytest.raises(CheckpointError, match=r"head\.bias: expected a dense tensor with values"):
        load_var(save(tmp_path, tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, "classes in its header: expected a list of names, got None"),
        ({"classes": 5}, "classes in its header: expected a list of names, got 5"),
        ({"classes": ["a", 3, "c", "d"]}, "classes in its header: expected a list of names"),
        ({"classes": ["a"]}, "classes in its header: expected 4 names, got 1"),
        ({"kind": "vqvae"}, "its header says 'vqvae', its tensors are those of a var"),
        ({"config": None}, "cannot infer the config"),
        ({"config": {}}, "'patch_nums' is missing"),
        ({"config.depth": 10**9}, "its header says depth 1000000000, its tensors 2"),
        ({"config.depth": 2.0}, r"its header says depth 2\.0, its tensors 2"),
        ({"config.depth": "two"}, "its header says depth 'two', its tensors 2"),
        ({"config.depth": None}, "its header says depth None, its tensors 2"),
        ({"config.patch_nums": 5}, "patch_nums in its header: expected a list of whole numbers, got 5"),
        ({"config.patch_nums": [1, 2]}, r"patch_nums in its header: expected 30 tokens, got \(1, 2\)"),
        ({"config.patch_nums": [4, 1]}, "patch_nums: expected two or more ascending sizes"),
        ({"config.colour": 5}, r"unknown fields \['colour'\]"),
        (None, "its header: expected a JSON object, got None"),
        ("{", "its header: not JSON"),
    ],
    ids=str,
)
def test_an_odd_header_is_one_line(tmp_path, var, change, message):
    save_checkpoint(tmp_path / "v.safetensors", var, {"classes": list(CLASS_NAMES)}, torch.float32)
    with safe_open(tmp_path / "v.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["tandem"])
    for key, value in change.items() if isinstance(change, dict) else ():
        place = header["config"] if key.startswith("config.") else header
        place[key.removeprefix("config.")] = value
    text = change if isinstance(change, str) else json.dumps(change if change is None else header)
    save_file(load_file(tmp_path / "v.safetensors"), tmp_path / "w.safetensors", metadata={"tandem": text})
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_numpy_values_are_read_and_pickled_calls_are_not_run(tmp_path, var, capsys):
    loaded = {"model": published_tensors(var), "args": {"a": np.float64(1), "b": Evil()}}
    with pytest.raises(CheckpointError, match=r"it wants to run .*print") as caught:
        load_var(save(tmp_path, loaded))
    assert "state_dict()" in caught.value.hint
    assert "never be printed" not in capsys.readouterr().out
    # numpy 1 called its module otherwise
    path = save(tmp_path, {"model": published_tensors(var), "args": {"a": np.float64(1)}})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "old.pth", "w") as new:
        for item in old.infolist():
            new.writestr(item, old.read(item).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert same(load_var(tmp_path / "old.pth", preparation=None), var)
