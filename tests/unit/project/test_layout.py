"""The shape of the project: who imports whom, and that `code/` does not hide Python's own `code` module."""

from __future__ import annotations

import ast
import code
import os
import pdb
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tandem
from support.sources import FOLDERS, PYTHONPATH, ROOT
from tandem.images import EXTENSIONS
from tandem_workers.storage import layout

# What each package may import of ours; jobs may import all
ALLOWED = {
    "tandem": {"tandem"},
    "tandem_workers": {"tandem", "tandem_workers"},
    "tandem_cluster": {"tandem", "tandem_cluster"},
    "tandem_jobs": {"tandem", "tandem_workers", "tandem_cluster", "tandem_jobs"},
}

# The rooms of a package; each may import itself and those before it. "" is where the commands are
ROOMS = {
    "tandem": ("", "checkpoints", "editing", "counting", "training"),
    "tandem_workers": (
        "",
        "storage",
        "models",
        "dataset",
        "pictures",
        "stages",
        "features",
        "training",
        "requests",
        "endpoint",
    ),
    "tandem_jobs": ("options", "labels", "run", "edits", "evaluation", "", "train", "bench", "study", "tune"),
}
# Modules of the library without a unit test file of their own, and what runs them
TESTED_ELSEWHERE = {
    "assembly": "test_linear.py, test_modulation.py and test_graphs.py assemble models in every form",
    "attention": "test_collaborative.py and test_linear.py: with and without cache",
    "blocks": "test_reference.py compares all blocks with the published code's values",
    "checkpoint_reader": "test_odd_checkpoints.py",
    "classifier": "test_study_scores.py and test_extractors.py",
    "conditioning": "types alone",
    "config": "test_checks.py and test_weights.py",
    "errors": "classes alone",
    "fused": "tests/kernels/test_fused.py",
    "fused_fp8": "tests/kernels/test_fused.py",
    "fused_vqvae": "tests/kernels/test_fused.py",
    "fusing": "tests/kernels/test_fused.py",
    "inferred_config": "test_odd_checkpoints.py",
    "initial": "every tiny model of the tests",
    "kernels": "test_linear.py",
    "launches": "test_card_model.py",
    "matching": "test_start.py",
    "memory": "test_oom.py",
    "pictures": "test_vqvae_task.py and test_image_folder.py",
    "precision": "TF32 is of GPUs alone",
    "prefix": "test_collaborative.py",
    "quantizer": "test_reference.py and test_collaborative.py",
    "recipe": "test_train_costs.py",
    "scales": "test_collaborative.py and test_decoding.py",
    "schedule": "test_loop.py",
    "state": "test_loop.py and test_checkpoint_files.py",
    "sums": "test_loop.py and test_parallel.py",
    "task": "types alone",
    "timing": "test_start_up.py",
    "train_tables": "test_train_costs.py",
    "transfers": "test_device_queue.py",
    "triton_kernels": "tests/kernels/test_compiled.py",
    "unwrapping": "test_wrapped_checkpoints.py",
    "user_files": "test_bad_input.py and test_yaml_file.py",
    "var": "test_reference.py",
    "version": "test_release.py",
    "vqvae": "test_reference.py",
    "vqvae_losses": "test_vqvae_task.py",
}


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_go_one_way(package):
    files = sorted(FOLDERS[package].rglob("*.py"))
    assert files
    for path in files:
        wrong = (imports(path) & set(FOLDERS)) - ALLOWED[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def imported_modules() -> dict[str, set[str]]:
    """For each module of ours those that it imports, at any depth and for types alone too."""
    paths = {
        ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
        for package, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (names & paths.keys()) or {str(node.module)}
        graph[name] = found & paths.keys()
    return graph


def test_no_imports_go_in_a_circle():
    try:
        tuple(TopologicalSorter(imported_modules()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def room_of(module: str) -> str:
    """The sub-package that a module is in; of a sub-package itself, that one."""
    package, *rest = module.split(".")
    return rest[0] if rest and (len(rest) > 1 or rest[0] in ROOMS[package]) else ""


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_one_way(package):
    graph, order = imported_modules(), ROOMS[package]
    ours = [module for module in graph if module.split(".")[0] == package]
    assert {room_of(module) for module in ours} == set(order)
    wrong = [
        f"{module} imports {imported}"
        for module in ours
        if module != package  # it hands on the public names of all rooms
        for imported in graph[module]
        if imported.split(".")[0] == package and order.index(room_of(imported)) > order.index(room_of(module))
    ]
    assert wrong == []


def test_modules_of_all_packages_have_names_of_their_own():
    """A name leads to one file."""
    names = Counter(path.name for folder in FOLDERS.values() for path in folder.rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == ["__init__.py"]


def test_every_module_of_the_library_has_its_tests():
    modules = {path.stem for path in FOLDERS["tandem"].rglob("*.py")} - {"__init__"}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "unit").rglob("test_*.py")}
    assert modules - tested == TESTED_ELSEWHERE.keys()
    named = {name for reason in TESTED_ELSEWHERE.values() for name in re.findall(r"test_\w+\.py", reason)}
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def test_the_library_does_not_import_ray_in_a_fresh_process():
    program = """
import importlib, pkgutil, sys
import tandem
for module in pkgutil.walk_packages(tandem.__path__, "tandem."):
    importlib.import_module(module.name)
loaded = {name.split(".")[0] for name in sys.modules}
assert not [name for name in loaded if name in ("ray", "boto3", "pyarrow") or name.startswith("tandem_")], loaded
print(len([name for name in sys.modules if name.startswith("tandem.")]))
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "code", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 15


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "code"], ids=["root", "code"])
def test_code_is_pythons_own_module_from_the_repository(cwd):
    program = "import pdb, code, sysconfig; print(code.__file__, sysconfig.get_paths()['stdlib'])"
    ran = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=True)
    file, stdlib = ran.stdout.split()
    assert Path(file).parent == Path(stdlib)


def test_code_is_pythons_own_module_under_pytest():
    assert Path(code.__file__).parent == Path(pdb.__file__).parent == Path(sysconfig.get_paths()["stdlib"])
    assert not (ROOT / "code" / "__init__.py").exists()


def test_one_file_starts_ray():
    def starts(path: Path) -> bool:
        return any(
            isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.init"
            for node in ast.walk(ast.parse(path.read_text()))
        )

    files = [p for folder in FOLDERS.values() for p in folder.rglob("*.py")]
    assert [p for p in files if starts(p)] == [FOLDERS["tandem_cluster"] / "session.py"]


def test_the_public_names_are_there_and_in_order():
    assert all(hasattr(tandem, name) for name in tandem.__all__)
    assert sorted(tandem.__all__, key=lambda n: (n.lower() == n and not n.startswith("_"), n)) == tandem.__all__
    public = {
        name for name in vars(tandem) if not name.startswith("_") and not isinstance(vars(tandem)[name], type(ast))
    }
    assert public <= set(tandem.__all__)


@pytest.mark.parametrize(
    "folder", [*FOLDERS.values(), ROOT / "tests", ROOT / "examples"], ids=lambda folder: folder.name
)
def test_files_stay_small(folder):
    longest = max(folder.rglob("*.py"), key=lambda p: len(p.read_text().splitlines()))
    assert len(longest.read_text().splitlines()) <= 320, longest


def test_codecs_are_spelt_in_one_file():
    """A new one is added there; what the card, paths and options say of it follows."""

    def spells_one(path: Path) -> bool:
        nodes = ast.walk(ast.parse(path.read_text()))
        return any(isinstance(node, ast.Constant) and node.value in ("webp", "WebP", "jpg") for node in nodes)

    files = [p for folder in FOLDERS.values() for p in folder.rglob("*.py")]
    assert [p.relative_to(ROOT) for p in files if spells_one(p)] == [Path("code/tandem/images.py")]
    for extension in EXTENSIONS.values():
        assert layout.image_label(layout.image_path(7, 3, extension)) == 7


def test_names_of_test_files_are_unique():
    """pytest imports them by name alone: of two it collects one and ends. Each conftest.py it loads by its path."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    "modules",
    [
        "tandem_jobs.run.pipeline, tandem_workers.stages.encoder, tandem_workers.dataset.formats, tandem",
        "tandem_jobs.bench.bench_pipeline",
    ],
    ids=["tasks that read, encode and store", "simulated stages"],
)
def test_processes_without_models_do_without_torch(modules):
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
