"""The command `tandem`: finds the sub-command, checks its options, and turns errors into exit codes.

Exit codes: 0 done; 1 the run failed; 2 the input was wrong; 3 a submitted job was stopped; 130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandem.errors import InputError, TandemError
from tandem.timing import add_seconds
from tandem_cluster.ray_version import check_ray
from tandem_jobs.slow_import import say_if_slow
from tandem_jobs.streams import CUT_OFF, OutputCut, usable_streams
from tandem_workers.dataset.start_times import process_began

if TYPE_CHECKING:
    from tandem_jobs.options.spec import Spec


@dataclass(frozen=True)
class Command:
    """A sub-command: the module, spec class and function behind it. Modules are imported on use."""

    module: str
    spec: str
    run: str
    summary: str
    wraps: bool = False  # another command follows after --


COMMANDS = {
    "generate": Command("tandem_jobs.generate", "GenerateSpec", "run", "synthesise a labelled image dataset"),
    "edit": Command("tandem_jobs.edit_job", "EditSpec", "run", "draw parts of pictures anew"),
    "submit": Command("tandem_jobs.submit", "SubmitSpec", "run", "run a command as a job on a Ray cluster", True),
    "serve": Command("tandem_jobs.serve", "ServeSpec", "run", "serve images over HTTP, with a web page"),
    "draft": Command("tandem_jobs.draft", "DraftSpec", "run", "make only the coarse token maps, to refine later"),
    "draft-edits": Command(
        "tandem_jobs.draft_edits", "DraftEditsSpec", "run", "make only the coarse token maps of edits"
    ),
    "refine": Command("tandem_jobs.refine", "RefineSpec", "run", "finish drafted images or edits"),
    "profile": Command("tandem_jobs.profile", "ProfileSpec", "run", "measure seconds per batch of every stage"),
    "tune": Command("tandem_jobs.tune.tune", "TuneSpec", "run", "find faster settings of equal quality"),
    "plan": Command("tandem_jobs.plan", "PlanSpec", "run", "choose a placement from measured stage times"),
    "cluster render": Command(
        "tandem_jobs.cluster_render", "RenderSpec", "run", "write the files of a real cluster from a plan"
    ),
    "bench pipeline": Command(
        "tandem_jobs.bench.bench_pipeline", "BenchPipelineSpec", "run", "efficiency of the Ray pipeline"
    ),
    "bench serve": Command(
        "tandem_jobs.bench.bench_serve", "BenchServeSpec", "run", "throughput and latency of the endpoint"
    ),
    "bench manifest": Command(
        "tandem_jobs.bench.bench_manifest", "BenchManifestSpec", "run", "seconds that many shards take"
    ),
    "bench card": Command(
        "tandem_jobs.bench.bench_card", "BenchCardSpec", "run", "check and measure one GPU, in minutes"
    ),
    "bench decode": Command(
        "tandem_jobs.bench.bench_decode", "BenchDecodeSpec", "run", "decoding against the matrix peak"
    ),
    "bench train": Command(
        "tandem_jobs.bench.bench_train", "BenchTrainSpec", "run", "memory and work of a training step"
    ),
    "bench store": Command("tandem_jobs.bench.bench_store", "BenchStoreSpec", "run", "encode and write throughput"),
    "ls": Command("tandem_jobs.dataset", "LsSpec", "run_ls", "list the files of a dataset, or presigned addresses"),
    "verify": Command("tandem_jobs.dataset", "VerifySpec", "run_verify", "check every file of a dataset"),
    "export": Command("tandem_jobs.export", "ExportSpec", "run", "write the pictures of a dataset in another form"),
    "models": Command("tandem_jobs.models", "ModelsSpec", "run_models", "list the embedded and the published models"),
    "inspect": Command("tandem_jobs.checkpoints", "InspectSpec", "run_inspect", "identify a checkpoint file"),
    "convert": Command("tandem_jobs.checkpoints", "ConvertSpec", "run_convert", "write a checkpoint as safetensors"),
    "pictures": Command("tandem_jobs.train.emoji", "PicturesSpec", "run", "make a folder of pictures to train on"),
    "tokenize": Command("tandem_jobs.tokenize", "TokenizeSpec", "run", "turn pictures into token maps to train on"),
    "train vqvae": Command("tandem_jobs.train.train_vqvae", "TrainVqvaeSpec", "run", "train an image tokenizer"),
    "train var": Command("tandem_jobs.train.train_var", "TrainVarSpec", "run", "train a drafter or a refiner"),
    "train classifier": Command(
        "tandem_jobs.train.train_classifier", "TrainClassifierSpec", "run", "train a small classifier of pictures"
    ),
    "train curves": Command("tandem_jobs.train.curves", "CurvesSpec", "run", "draw the logs of training runs"),
    "finetune drafter": Command(
        "tandem_jobs.train.finetune_drafter", "FinetuneDrafterSpec", "run", "specialise a drafter on scales 1 to N"
    ),
    "finetune refiner": Command(
        "tandem_jobs.train.finetune_refiner", "FinetuneRefinerSpec", "run", "specialise a refiner, by a larger teacher"
    ),
    "evaluate": Command("tandem_jobs.evaluate", "EvaluateSpec", "run", "measure how good a dataset is"),
    "study": Command("tandem_jobs.study.studies", "StudiesSpec", "run", "list the studies"),
    "study training-free": Command(
        "tandem_jobs.study.training_free", "TrainingFreeSpec", "run", "Tables 2, 6: quality of CoDe at every N"
    ),
    "study tradeoff": Command(
        "tandem_jobs.study.tradeoff", "TradeoffSpec", "run", "Table 1: quality against speed and memory"
    ),
    "study scales": Command(
        "tandem_jobs.study.single_scale", "ScalesSpec", "run", "Table 4: one scale by a smaller model"
    ),
    "study fine-tuned": Command(
        "tandem_jobs.study.fine_tuned", "FineTunedSpec", "run", "Table 2: fine-tuned models beside training-free ones"
    ),
    "study memory": Command(
        "tandem_jobs.study.memory_use", "MemorySpec", "run", "Table 3: memory of plain VAR and CoDe by batch"
    ),
    "study latency": Command(
        "tandem_jobs.study.latency", "LatencySpec", "run", "figures 5b, 5c: latency by batch and by scale"
    ),
    "study spectrum": Command(
        "tandem_jobs.study.spectrum", "SpectrumSpec", "run", "figure 3b: frequencies that scales make"
    ),
    "study gallery": Command(
        "tandem_jobs.study.gallery", "GallerySpec", "run", "figures 2, 6, 9, 10: the same seeds by both"
    ),
    "study edits": Command(
        "tandem_jobs.study.editing_success", "EditsSpec", "run", "figure 7: how often edits show the class asked for"
    ),
    "study no-reference": Command(
        "tandem_jobs.study.no_reference", "NoReferenceSpec", "run", "Table 5: scores of single pictures"
    ),
    "completion": Command(
        "tandem_jobs.completion", "CompletionSpec", "run", "print a script that completes commands by TAB"
    ),
}

USAGE = """usage: tandem COMMAND [OPTIONS]

Tandem synthesises labelled image datasets by collaborative decoding: a large drafter makes the coarse token maps
of an image, a small refiner the fine ones.

commands:
{commands}

examples:
  tandem generate --classes all --per-class 20 --out out     a dataset from the embedded model
  tandem submit -- generate --classes all --images 90 --out s3://bucket/out    the same on a Ray cluster
  tandem serve                                               an endpoint and a page at http://127.0.0.1:8000/
  tandem plan --profile paper-l20 --gpus l20:3 --images 1e6  which GPUs draft and which refine
  tandem bench store                                         measure how fast files are written here
  tandem models                                              list the models
  tandem inspect var_d16.pth                                 identify a checkpoint

'tandem help COMMAND' explains a command. Every option is also a key of a --spec file and a variable TANDEM_*."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with usable_streams():
            return run(args)
    except OutputCut:
        return CUT_OFF


def run(args: list[str]) -> int:
    """Run a command line; errors become lines on stderr. Returns the exit code."""
    if args[:1] == ["help"]:
        args = [*args[1:], "--help"]
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    if args[0] == "--version":
        from tandem_jobs.run.versions import software

        print(software())
        return 0
    try:
        name, rest = split_command(args)
        command = COMMANDS[name]
        check_ray()
        wrapped = []
        if command.wraps and "--" in rest:
            rest, wrapped = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
        with say_if_slow(f"tandem {name}: loading libraries"):
            spec, module = parse_options(name, rest), importlib.import_module(command.module)
        add_seconds("imports", time.time() - process_began())
        getattr(module, command.run)(spec, *([wrapped] if command.wraps else []))
    except TandemError as error:
        print(f"error: {error}".replace("\n", "\n  "), file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def parse_options(name: str, args: Sequence[str]) -> Spec:
    """The options of a command, checked. Raises InputError."""
    from tandem_jobs.options.spec import parse, without_variable

    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    with without_variable("TANDEM_SPEC" if command.wraps else ""):  # it is for the wrapped command
        return parse(getattr(module, command.spec), args, f"tandem {name}", getattr(module, "EXAMPLES", ""))


def usage() -> str:
    return USAGE.format(commands="\n".join(f"  {name:<20}{c.summary}" for name, c in COMMANDS.items()))


def split_command(args: list[str]) -> tuple[str, list[str]]:
    """The command's name, one word or two, and its arguments. Raises InputError for an unknown command."""
    second = [word for word in args[1:2] if not word.startswith("-")]
    group = [name for name in COMMANDS if name.split()[0] == args[0]]
    for count in (2, 1):
        name = " ".join(args[:count])
        if name in COMMANDS and not (count == 1 and second and len(group) > 1):  # a name after a group is of that group
            return name, args[count:]
    typed = " ".join([args[0], *second])
    if group:
        raise InputError(f"expected one of {', '.join(group)}, got {typed!r}", suggest(typed, group))
    if not difflib.get_close_matches(typed, [name for name in COMMANDS if " " in name]):
        typed = args[0]
    raise InputError(f"expected a command, got {typed!r}", suggest(typed, list(COMMANDS)))


def suggest(typed: str, names: Sequence[str]) -> str:
    """A hint that names the most similar command, or how to list all."""
    close = difflib.get_close_matches(typed, names, 1, 0.7)
    return f"did you mean tandem {close[0]}?" if close else "tandem help lists all commands"
