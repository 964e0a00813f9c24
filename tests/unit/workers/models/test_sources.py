"""Weights by address: pinned, fetched once, checked by hash, and every fault one line with what to do."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from support.hub_server import TOKEN, HubServer
from tandem.checkpoints.fine_tuning import AS_TRAINED
from tandem.config import SamplingConfig
from tandem.errors import CheckpointError, InputError
from tandem_jobs.cli import main
from tandem_jobs.submit_files import NAMES
from tandem_workers.models import fetch_http
from tandem_workers.models.fetch_hub import cause_of
from tandem_workers.models.model_set import ModelRef, resolve, resolve_models, suited
from tandem_workers.models.sources import PUBLISHED, local_file

REPO = "someone/models"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(fetch_http.time, "sleep", lambda _: None)
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def drafter(tiny_models):
    with open(tiny_models["drafter"], "rb") as file:
        return file.read()


def weights_of(ref: ModelRef) -> bytes:
    with ref.opened() as path:
        return path.read_bytes()


def test_a_node_with_a_cache_of_its_own_fetches_into_it(hub, drafter, tmp_path, monkeypatch):
    commit = hub.push(REPO, "drafter.safetensors", drafter)
    address = f"{hub.endpoint}/{REPO}/resolve/{commit}/drafter.safetensors"
    ref = resolve("drafter", f"{address}#sha256={hashlib.sha256(drafter).hexdigest()}", False).ref
    assert weights_of(ref) == drafter
    assert not (tmp_path / "own").exists()
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "own"))
    assert weights_of(ref) == drafter
    assert [path.read_bytes() for path in (tmp_path / "own").rglob("*.safetensors")] == [drafter]


def test_a_branch_is_pinned_to_its_commit_and_fetched_once(hub, drafter):
    commit = hub.push(REPO, "sub/drafter.safetensors", drafter)
    ref = resolve("drafter", f"hf://{REPO}/sub/drafter.safetensors", False).ref
    assert ref.source == f"hf://{REPO}@{commit}/sub/drafter.safetensors"
    assert ref.sha256 == hashlib.sha256(drafter).hexdigest()
    hub.push(REPO, "sub/drafter.safetensors", drafter + b"another")  # the branch moves on
    assert weights_of(ref) == drafter
    assert sum(n for path, n in hub.seen.items() if path.startswith("GET")) == 1
    hub.shutdown()  # and the hub goes away
    hub.server_close()
    assert weights_of(ref) == drafter


def test_a_revision_may_be_named(hub, drafter):
    first = hub.push(REPO, "d.safetensors", drafter, ref="v1")
    hub.push(REPO, "d.safetensors", drafter + b"x")
    for revision in ("v1", first):
        assert local_file(f"hf://{REPO}@{revision}/d.safetensors").source == f"hf://{REPO}@{first}/d.safetensors"


def test_a_damaged_copy_of_the_hub_is_fetched_again(hub, drafter):
    hub.push(REPO, "d.safetensors", drafter)
    file = local_file(f"hf://{REPO}/d.safetensors")
    file.path.resolve().write_bytes(b"damaged")
    again = local_file(f"hf://{REPO}/d.safetensors")
    assert again == file and again.path.read_bytes() == drafter


def test_a_password_of_the_hub_s_address_is_not_shown(hub, drafter, monkeypatch):
    hub.push(REPO, "d.safetensors", drafter)
    hub.gated.add(REPO)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("//", "//me:hunter2@"))
    with pytest.raises(InputError) as caught:
        local_file(f"hf://{REPO}/d.safetensors")
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert cause_of(ValueError("no answer of https://me:hunter2@host/x")) == "no answer of https://host/x"


def test_a_gated_repository_wants_a_token_which_is_kept_nowhere(hub, drafter, tmp_path, monkeypatch, capsys):
    hub.push(REPO, "d.safetensors", drafter)
    hub.gated.add(REPO)
    with pytest.raises(InputError, match=r"d\.safetensors: gated$") as caught:
        local_file(f"hf://{REPO}/d.safetensors")
    assert caught.value.hint == f"set HF_TOKEN and accept the licence at {hub.endpoint}/{REPO}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ref = resolve("drafter", f"hf://{REPO}/d.safetensors", False).ref
    assert TOKEN not in repr(ref)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert TOKEN.encode() not in written and TOKEN not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://nobody/nothing/f.pth", "no such repository, or a private one"),
        (f"hf://{REPO}/no.pth", "no file no.pth in this repository at main"),
        (f"hf://{REPO}@v9/d.safetensors", "no revision v9 in this repository"),
        (f"hf://{REPO}", "expected hf://OWNER/REPO/FILE"),
        (f"hf://{REPO}/", "expected hf://OWNER/REPO/FILE"),
        ("hf://file.pth", "expected hf://OWNER/REPO/FILE"),
        (f"hf://{REPO}/../../x", "expected hf://OWNER/REPO/FILE"),
        (f"hf://{REPO}@refs/pr/1/d.safetensors", "no revision refs in this repository"),
        ("gs://bucket/key", "expected a path, s3://bucket/key, hf://OWNER/REPO/FILE"),
    ],
)
def test_what_is_not_on_the_hub_is_one_line(hub, drafter, capsys, address, message):
    hub.push(REPO, "d.safetensors", drafter)
    assert main(["inspect", address]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0] and len(lines) <= 2


def test_a_node_fetches_with_the_variables_of_its_environment_alone(hub, drafter, tmp_path):
    hub.push(REPO, "d.safetensors", drafter)
    hub.gated.add(REPO)
    script = "import sys; from tandem_workers.models.sources import local_file; print(local_file(sys.argv[1]).path)"
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", script, f"hf://{REPO}/d.safetensors"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    path = Path(ran.stdout.strip())
    assert path.read_bytes() == drafter and path.is_relative_to(tmp_path / "home")


def test_a_hub_that_is_away_is_one_line(hub, monkeypatch):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(InputError, match="the hub cannot be reached, and the file is not in its cache") as caught:
        local_file(f"hf://{REPO}/d.safetensors")
    assert "HF_ENDPOINT" in caught.value.hint and "\n" not in str(caught.value)


def hashed_address(hub: HubServer, data: bytes, path: str = "/a%20b/d.safetensors") -> str:
    hub.plain[path] = data
    return f"{hub.endpoint}{path}#sha256={hashlib.sha256(data).hexdigest()}"


def test_a_hashed_address_is_fetched_once_and_needs_no_server_then(hub, drafter):
    address = hashed_address(hub, drafter)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(local_file, [address] * 8))) == 1
    ref = resolve("drafter", address, False).ref
    assert ref.source == address
    assert weights_of(ref) == drafter
    assert sum(hub.seen.values()) == 1
    local_file(address).path.write_bytes(b"damaged")
    assert weights_of(ref) == drafter
    assert sum(hub.seen.values()) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_goes_on_where_it_broke(hub, ranges):
    data = bytes(range(256)) * 40
    hub.ranges, hub.cut_after = ranges, [3000, 100, 0]
    assert local_file(hashed_address(hub, data)).path.read_bytes() == data
    assert sum(hub.seen.values()) == 4


def test_a_download_that_was_given_up_is_gone_on_with(hub):
    data = bytes(range(256)) * 40
    address = hashed_address(hub, data)
    hub.cut_after = [500, 0, 0, 0]
    with pytest.raises(InputError, match="cannot be reached, or breaks off") as caught:
        local_file(address)
    assert "again to resume" in caught.value.hint
    assert local_file(address).path.read_bytes() == data
    (partial,) = [hub.plain[path] for path in hub.plain]
    assert partial == data and not list(local_file(address).path.parent.glob("*.part"))


@pytest.mark.parametrize("rest", [b"wrong", b"wrong" * 9000])
def test_a_wrong_beginning_is_thrown_away(hub, rest):
    data = bytes(range(256)) * 40
    address = hashed_address(hub, data)
    path = local_file(address).path
    path.rename(path.with_name(path.name + ".part"))
    path.with_name(path.name + ".part").write_bytes(rest)
    assert local_file(address).path.read_bytes() == data


def test_another_file_than_the_hash_says_is_refused_and_not_kept(hub, tmp_path):
    address = hashed_address(hub, b"wanted")
    hub.plain["/a%20b/d.safetensors"] = b"<html>something else"
    with pytest.raises(InputError, match=r"expected sha256 [0-9a-f]{64}, got [0-9a-f]{64} \(20 bytes\)"):
        local_file(address)
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == ["lock"]


def test_a_busy_server_is_asked_again_and_others_are_one_line(hub):
    address = hashed_address(hub, b"wanted")
    hub.status = [503, 429]
    assert local_file(address).path.read_bytes() == b"wanted"
    for status, message in ((404, "answered 404"), (401, "answered 401"), (403, "answered 403")):
        hub.status = [status]
        with pytest.raises(InputError, match=message):
            local_file(hashed_address(hub, f"another {status}".encode()))


HEX = "0" * 64


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://host/w.pth", "expected https://HOST/FILE#sha256=HEX, .* got https://host/w.pth without a hash"),
        ("https://host/w.pth#sha256=12", "in 64 hexadecimal digits, got https://host/w.pth with 2 of them"),
        (f"https://host/#sha256={HEX}", "expected https://HOST/FILE#sha256=HEX"),
        (f"https:///w.pth#sha256={HEX}", "expected https://HOST/FILE#sha256=HEX"),
        (f"https://host:port/w.pth#sha256={HEX}", "expected https://HOST/FILE#sha256=HEX"),
        (f"https://host/a b#sha256={HEX}", "expected https://HOST/FILE#sha256=HEX"),
        (f"https://me:geheim@host/w.pth#sha256={HEX}", "without user, password, token or signature"),
        ("https://me:geheim@host/w.pth", "expected https://HOST/FILE#sha256=HEX"),
        ("https://host/w.pth?token=geheim", "expected https://HOST/FILE#sha256=HEX"),
        (f"https://host/w.pth?X-Amz-Signature=geheim#sha256={HEX}", "without user, password, token or signature"),
    ],
)
def test_addresses_without_hash_or_with_secrets_are_refused(address, message):
    with pytest.raises(InputError, match=message) as caught:
        local_file(address)
    assert caught.value.hint and "geheim" not in f"{caught.value} {caught.value.hint}"


def test_published_files_are_addresses_by_name(hub, drafter, monkeypatch):
    """A file of tiny weights stands in for the published one."""
    commit = hub.push("FoundationVision/var", "var_d30.pth", drafter)
    assert resolve("drafter", "var_d30", False).ref.source == f"hf://FoundationVision/var@{commit}/var_d30.pth"
    assert set(PUBLISHED) <= NAMES  # which no submitted job takes for files of this machine
    with pytest.raises(CheckpointError, match="d30 is a preset") as caught:
        resolve("drafter", "d30", False)
    assert "var_d30 is the published file" in caught.value.hint
    seen = sum(hub.seen.values())
    assert resolve("vqvae", "vae_ch160v4096z32", random_weights=True).ref.random_seed is not None
    assert sum(hub.seen.values()) == seen
    with pytest.raises(InputError, match=r"vae_ch160v4096z32\.pth: no file"):
        resolve("vqvae", "vae_ch160v4096z32", random_weights=False)


def test_models_lists_what_is_published_and_asks_no_server(hub, capsys):
    assert main(["models", "--json-lines"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    published = [f"var_d{depth}" for depth in (16, 20, 24, 30, 36)] + ["vae_ch160v4096z32"]
    published += [f"{role}_{n}" for role in ("drafter", "refiner") for n in (6, 7, 8, 9)]
    free = [*(f"var_d{depth}_cca" for depth in (16, 20, 24, 30)), "var_d16_ddo", "var_d30_ddo"]
    published += free
    assert set(PUBLISHED) == set(published)
    for name in published:
        row = rows[name]
        licence = "CC BY-NC-SA 4.0" if name.endswith("ddo") else "MIT"
        assert row["weights"].startswith("hf://") and row["licence"] == licence
        assert row["weights"].endswith(", guidance-free") == (name in free)
        assert row["megabytes"] == pytest.approx(row["parameters"] * 4 / 1e6, rel=0.01)
    assert {name for name, row in rows.items() if row["counted"]} == {"var_d30", "drafter_8", *free}
    assert not hub.seen


def test_published_models_without_guidance_decode_at_cfg_0():
    found = PUBLISHED["var_d30_ddo"].fine_tuned, PUBLISHED["var_d16_cca"].fine_tuned
    sampling = suited(SamplingConfig(), dict(zip(("drafter", "refiner"), found, strict=True)))
    assert (sampling.cfg, sampling.refiner_cfg) == (0, None)
    one = suited(SamplingConfig(cfg=1.5), {"drafter": AS_TRAINED, "refiner": found[1]})
    assert (one.cfg, one.refiner_cfg) == (1.5, 0)


def test_a_job_keeps_pinned_addresses_and_parts(hub, tiny_models, drafter):
    commit = hub.push(REPO, "d.safetensors", drafter)
    models = resolve_models(
        f"hf://{REPO}/d.safetensors", tiny_models["refiner"], tiny_models["vqvae"], random_weights=False
    )
    assert models.record["weights"]["drafter"] == f"hf://{REPO}@{commit}/d.safetensors"
    assert models.record["weights"]["refiner"] == tiny_models["refiner"]


def test_the_home_of_an_unknown_user_is_a_file_that_is_not_there():
    assert local_file("~nobody-here/x.pth").sha256 == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedded", "error: expected one weights file, got embedded, which has 3\nhint: they are /"),
        ("d30", "error: expected a weights file, got the preset d30, which has none\nhint: tandem models lists files"),
    ],
)
def test_names_that_are_no_single_file_are_refused_by_inspect(name, message, capsys):
    assert main(["inspect", name]) == 2
    assert message in capsys.readouterr().err
