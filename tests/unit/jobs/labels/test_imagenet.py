"""A model of 1,000 classes without names: by name, id, synonym and number, in a job and at the endpoint."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from support.fake_engine import ABOUT, PATH, FakeEngine, client
from support.tiny_models import save_tiny_models
from tandem.class_names import imagenet_names
from tandem.config import SamplingConfig
from tandem.errors import LabelError
from tandem.images import Provenance, read_provenance
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.labels.labels import choose_classes
from tandem_jobs.options.spec import parse
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.endpoint.decoding import DraftDecoder, RefineDecoder, Row
from tandem_workers.endpoint.gateway import Gateway, GatewaySettings
from tandem_workers.endpoint.replicas import FileEncoder
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import ModelSet, resolve_models
from tandem_workers.requests.messages import ImageRequest
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.encoder import ImageEncoder
from tandem_workers.stages.refiner import Refiner

GOLDEN = ("golden retriever", "Golden_Retriever", "n02099601", "207")
SHADES = ("sunglasses, dark glasses, shades", "DARK GLASSES", "n04356056", "837")
SPELLINGS = [(text, label) for texts, label in ((GOLDEN, 207), (SHADES, 837)) for text in texts]
SAMPLING = SamplingConfig(cfg=2.0, top_k=20, top_p=0.95)
SEED, STEPS = 5, 2


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """As published: no names in the files."""
    return list(save_tiny_models(tmp_path_factory.mktemp("thousand"), 1000).values())


@pytest.fixture(scope="module")
def models(files) -> ModelSet:
    return resolve_models(*files, random_weights=False)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def api(models, engine):
    about = replace(ABOUT, class_names=models.class_names)
    return client(Gateway(engine, about, GatewaySettings()))


def rows_file(folder, kind: str, text: str) -> str:
    path = folder / f"rows.{kind}"
    with path.open("w", newline="") as file:
        if kind == "csv":
            csv.writer(file).writerows([["class_name", "count"], [text, 1]])
        else:
            file.write(json.dumps({"class_name": text}) + "\n")
    return str(path)


def labels_of(text: str, models: ModelSet, api, engine, tmp_path) -> dict[str, int]:
    """The label of one class by each way to name it."""
    assert api.post(PATH, json={"prompt": text}).status_code == 200
    quoted = '"' + text + '"'
    return {
        "--classes": choose_classes(quoted, models.class_names)[0],
        "csv": int(read_label_file(rows_file(tmp_path, "csv", text), models.class_names).label[0]),
        "jsonl": int(read_label_file(rows_file(tmp_path, "jsonl", text), models.class_names).label[0]),
        "endpoint": engine.asked[-1].label,
    }


@pytest.mark.parametrize(("text", "label"), SPELLINGS)
def test_every_way_to_name_a_class_gives_its_label(models, api, engine, tmp_path, text, label):
    assert set(labels_of(text, models, api, engine, tmp_path).values()) == {label}


def test_every_way_to_name_a_class_gives_the_same_bytes(models, api, engine, tmp_path):
    hashes = models.hashes
    provenance = Provenance("t", hashes["drafter"], hashes["refiner"], hashes["vqvae"], SEED, STEPS)
    settings = DecodeSettings(SEED, STEPS, SAMPLING, batch=1, dtype="float32", threads=1)
    before = torch.get_num_threads()
    drafter, refiner = Drafter(models, settings).load(), Refiner(models, settings).load()
    works = DraftDecoder(models, "float32", 1), RefineDecoder(models, "float32", 1)

    def by_job(label: int) -> bytes:
        shard = ShardRows(shard=0, index=np.arange(1), label=np.array([label], np.int32))
        return ImageEncoder("png", 90, provenance, models.class_names)(refiner(drafter(shard))).images[0]

    def by_endpoint(label: int) -> bytes:
        request = ImageRequest(label, SEED, 1, STEPS, SAMPLING)
        ((_, tokens),) = works[0]([Row(request, 0, np.zeros(0, np.uint16))], 1)
        ((_, made),) = works[1]([Row(request, 0, tokens.ids)], 1)
        return FileEncoder(provenance, models.class_names.names)(made.pixels, request, 0)

    made: dict[int, set[bytes]] = {207: set(), 837: set()}
    for text, label in SPELLINGS:
        for way, found in labels_of(text, models, api, engine, tmp_path).items():
            made[label].add(by_endpoint(found) if way == "endpoint" else by_job(found))
    torch.set_num_threads(before)
    assert [len(files) for files in made.values()] == [1, 1]
    assert made[207] != made[837]
    assert read_provenance(made[207].pop()).class_name == "golden retriever"


def test_names_with_commas_are_quoted_or_given_by_a_synonym(models):
    names = models.class_names
    assert choose_classes('207,"sunglasses, dark glasses, shades",0-1', names) == [207, 837, 0, 1]
    assert choose_classes('golden retriever, "tench, Tinca tinca" ,n04356056', names) == [207, 0, 837]
    assert choose_classes("tench, Tinca tinca", names) == [0]  # each part is a synonym of the one class
    with pytest.raises(LabelError, match=r"--classes: .* got 'crane', a name of 134 .* and 517 "):
        choose_classes("tench,crane", names)
    with pytest.raises(LabelError, match="names with commas in quotes, got '\"tench"):
        choose_classes('"tench', names)


def test_a_name_of_two_classes_is_refused_everywhere(models, api, tmp_path):
    error = api.post(PATH, json={"prompt": "maillot"}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "class_not_found")
    assert "638 (maillot, n03710637) and 639 (maillot, n03710721)" in error["message"]
    with pytest.raises(LabelError, match=r"rows\.csv, row 1: class_name: expected a name of one class, got 'maillot'"):
        read_label_file(rows_file(tmp_path, "csv", "maillot"), models.class_names)


def test_the_endpoint_lists_and_finds_them(api):
    assert api.get("/v1/classes?limit=1000").json()["total"] == 1000
    (golden,) = api.get("/v1/classes?query=golden retr").json()["data"]
    assert golden == {"id": 207, "object": "class", "name": "golden retriever", "synonyms": [], "wnid": "n02099601"}
    shades = api.get("/v1/classes?query=SHADES").json()["data"][0]
    assert shades["name"] == SHADES[0] and shades["synonyms"] == ["sunglasses", "dark glasses", "shades"]
    assert [found["id"] for found in api.get("/v1/classes?query=n02099601").json()["data"]] == [207]


def test_a_thousand_classes_without_names_are_those_of_imagenet_and_that_is_part_of_the_job(files, models):
    assert models.class_names == imagenet_names()
    assert models.names_sha256 == imagenet_names().digest
    numbered = resolve_models(*files, random_weights=False, class_names="numbers")
    assert numbered.class_names[207] == "207" and numbered.names_sha256 is None
    assert resolve_models(*files, random_weights=False, class_names="imagenet").names_sha256 == models.names_sha256


def test_presets_have_them_too():
    models = resolve_models("d20", "d16", "vae_ch160v4096z32", random_weights=True)
    assert models.class_names[999] == "toilet tissue, toilet paper, bathroom tissue"


def test_a_name_with_commas_means_the_same_by_flag_file_and_variable(models, tmp_path, monkeypatch):
    quoted, rest = 'golden retriever,"sunglasses, dark glasses, shades"', ["--images", "2", "--out", "o"]
    (tmp_path / "job.yaml").write_text('classes: [golden retriever, "sunglasses, dark glasses, shades"]\n')
    ways = (["--classes", quoted], ["--spec", str(tmp_path / "job.yaml")])
    found = [parse(GenerateSpec, [*way, *rest], "t").classes for way in ways]
    monkeypatch.setenv("TANDEM_CLASSES", quoted)
    found.append(parse(GenerateSpec, rest, "t").classes)
    assert [choose_classes(text, models.class_names) for text in found] == [[207, 837]] * 3
