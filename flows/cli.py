"""The command ``gristmill``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows import embedded
from flows.environment import set_environment
from flows.recipe_files import RECIPES, descriptions, find_recipe
from lmcore.config import NEEDS_A_PATH, Recipe, load_recipe
from lmcore.errors import ConfigError, GristmillError, nearest
from lmcore.home import Home
from lmcore.store import write_atomically

STARTED = time.monotonic()

app = typer.Typer(
    name="gristmill",
    help="From raw text to a measured, registered language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[str, typer.Argument(help="Name of a recipe, or path of a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting; may be repeated.")
]
Decision = Literal["train", "validation", "test", "dropped", "contaminated", "duplicate", "near_duplicate"]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the summary there.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's log too.")]


@app.command(epilog="Example: gristmill run quickstart --set train.steps=100 --json summary.json")
def run(
    recipe: RecipeName = "quickstart",
    overrides: Overrides = None,
    json_file: JsonFile = None,
    verbose: Verbose = False,
) -> None:
    """Run the whole pipeline here: data, training, evaluation, registration."""
    _run_flow("pipeline", recipe, overrides, json_file, verbose)


@app.command(epilog="Example: gristmill prepare quickstart --set data.tokenizer.vocab_size=8192")
def prepare(
    recipe: RecipeName = "quickstart",
    overrides: Overrides = None,
    json_file: JsonFile = None,
    verbose: Verbose = False,
) -> None:
    """Prepare the data of a recipe: files to tokens."""
    _run_flow("data", recipe, overrides, json_file, verbose)


@app.command(epilog="Example: gristmill train quickstart --set train.optimizer.name=adamw")
def train(
    recipe: RecipeName = "quickstart",
    overrides: Overrides = None,
    json_file: JsonFile = None,
    verbose: Verbose = False,
) -> None:
    """Train the model of a recipe; data that is there is reused."""
    _run_flow("train", recipe, overrides, json_file, verbose)


@app.command(epilog="Example: gristmill evaluate quickstart --set evaluation.stride_tokens=64")
def evaluate(
    recipe: RecipeName = "quickstart",
    overrides: Overrides = None,
    json_file: JsonFile = None,
    verbose: Verbose = False,
) -> None:
    """Measure the model of a recipe; data and training that are there are reused."""
    _run_flow("evaluate", recipe, overrides, json_file, verbose)


@app.command(epilog='Example: gristmill generate quickstart --prompt "def main():" --max-new-tokens 60')
def generate(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_MODEL", help="A recipe, or a model directory.")
    ] = "quickstart",
    prompt: Annotated[str, typer.Option(help="Beginning of the text.")] = "import ",
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.", min=1)] = 100,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.", min=0)] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from this many tokens; 0: all.", min=0)] = 50,
    top_p: Annotated[float, typer.Option(help="Draw from this much probability.", min=0, max=1)] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    model: Annotated[Path | None, typer.Option(help="Model directory; else the recipe's newest.")] = None,
    overrides: Overrides = None,
) -> None:
    """Continue a prompt with a trained model."""
    with _errors():
        directory = _existing_model(model) if model else _find_model(recipe, overrides)
        options = [
            *("--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature)),
            *("--top-k", str(top_k), "--top-p", str(top_p), "--seed", str(seed)),
        ]
        _run_module("lmcore.eval.generate", str(directory), "--prompt", prompt, *options)


@app.command(epilog="Example: gristmill export my-llama.yaml my-llama --dtype bf16")
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_MODEL",
            help="A recipe, with the --set it was trained with; or a model directory.",
        ),
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Hugging Face directory to be written.")],
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option(help="Type of the weights.")] = "fp32",
    max_file_bytes: Annotated[
        int, typer.Option(help="Weights of one file, of which there may be several.", min=1)
    ] = 4_000_000_000,
    overrides: Overrides = None,
) -> None:
    """Write a trained model as a Hugging Face directory: config, safetensors, tokenizer."""
    with _errors():
        source = _find_model(model, overrides)
        options = ("--dtype", dtype, "--max-file-bytes", str(max_file_bytes))
        _run_module("lmcore.model.hf", "export", str(source), str(directory), *options)


@app.command("import", epilog="Example: gristmill import Qwen3-0.6B-Base > sections.yaml")
def import_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a Hugging Face model.")],
) -> None:
    """Check a Hugging Face model, and print what a recipe must say to go on from it."""
    with _errors():
        _run_module("lmcore.model.hf", "import", str(directory))


@app.command(epilog="Example: gristmill size --depth 12 > my-model.yaml")
def size(
    depth: Annotated[int | None, typer.Option(help="Layers.")] = None,
    parameters: Annotated[str, typer.Option(help="Parameters instead, such as 124M.")] = "",
    path: Annotated[
        str, typer.Option(help="Glob of the files to learn from; else the standard library of Python.")
    ] = "",
    processes: Annotated[int, typer.Option(help="Processes: one for each GPU.", min=1)] = 1,
    precision: Annotated[
        str,
        typer.Option(help="fp32, bf16, fp16 or fp8; if not set bf16, or fp32 where there is no NVIDIA GPU."),
    ] = "",
) -> None:
    """Write a complete recipe for a model of some size, with the rule behind each setting."""
    with _errors():
        from flows.sizes import write_size

        def warn(text: str) -> None:
            typer.echo(f"warning: {text}", err=True)

        typer.echo(write_size(depth, parameters, path, processes, precision, warn), nl=False)


@app.command(epilog="Example: gristmill plan llama-8b --gpus 64 --gpu-memory 80 --gpu H100")
def plan(
    recipe: RecipeName,
    gpus: Annotated[int, typer.Option(help="GPUs in all.", min=1, max=131_072)],
    gpu_memory: Annotated[float, typer.Option(help="GB of each; 0: what it is sold with.", min=0)] = 0.0,
    gpu: Annotated[str, typer.Option(help="A100, H100, H200 or B200.")] = "H100",
    gpus_per_node: Annotated[int, typer.Option(help="That share the fast links.", min=1)] = 8,
    gpu_watts: Annotated[float, typer.Option(help="Power limit, if below the TDP; 0: none.", min=0)] = 0.0,
    link_gb: Annotated[float, typer.Option(help="GB/s each way in a node; 0: NVLink's.", min=0)] = 0.0,
    network_gb: Annotated[
        float, typer.Option(help="GB/s each way of a GPU's network; 0: 50 (A100: 25).", min=0)
    ] = 0.0,
    headroom: Annotated[
        float, typer.Option(help="Share of memory left to CUDA, NCCL and gaps.", min=0, max=0.9)
    ] = 0.1,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(help="Price of a GPU for an hour.", min=0)
    ] = None,
    price_per_kwh: Annotated[float | None, typer.Option(help="Price of electricity on top.", min=0)] = None,
    grams_co2_per_kwh: Annotated[float | None, typer.Option(help="Of electricity (--json).", min=0)] = None,
    pue: Annotated[float, typer.Option(help="What the building draws over its computers.", min=1)] = 1.2,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Say what layouts of a recipe would need on so many GPUs, and which to take: no GPU is asked."""
    with _errors():
        from flows.plan import ask, load_for_plan, show_plan
        from flows.sizes import foreseen

        _check_writable(json_file)
        settings = load_for_plan(recipe, overrides or [])
        options = {
            "gpus": gpus,
            "gpu_memory": gpu_memory,
            "gpu": gpu,
            "gpus_per_node": gpus_per_node,
            "gpu_watts": gpu_watts,
            "link_gb": link_gb,
            "network_gb": network_gb,
            "headroom": headroom,
            "rates": {
                "per_gpu_hour": price_per_gpu_hour,
                "per_kwh": price_per_kwh,
                "grams_co2_per_kwh": grams_co2_per_kwh,
                "overhead": pue,
            },
        }
        found = ask(settings, options)
        busy = os.times()
        found["seconds"] = round(time.monotonic() - STARTED, 2)
        found["processor_seconds"] = round(sum(busy[:4]), 2)
        found["warning"] = foreseen(settings)
        show_plan(settings.name, found)
        _write_json(json_file, found)


@app.command(epilog="Example: gristmill recipes")
def recipes() -> None:
    """Say which recipes there are, and what each is."""
    found = descriptions()
    for name, description in found.items():
        typer.echo(f"{name:<{max(map(len, found)) + 2}}{description}")


@app.command(epilog="Example: gristmill explain quickstart --set train.steps=500")
def explain(
    recipe: RecipeName = "quickstart", overrides: Overrides = None, json_file: JsonFile = None
) -> None:
    """Say of each stage whether it would be reused or built, and why, without doing it."""
    with _errors():
        settings = _load(recipe, overrides)
        set_environment(Home.here(), quiet=True)
        from flows.explain import explain_recipe

        rows = explain_recipe(settings)
        table = Table(box=None, pad_edge=False)
        for heading in ("stage", "would be", "key", "why"):
            table.add_column(heading)
        for row in rows:
            table.add_row(row.stage, row.status, row.key[:12], escape(row.reason))
        Console().print(table)
        for row in rows:
            if row.warning:
                Console().print(f"\nwarning: {row.warning}", highlight=False, markup=False)
        _write_json(json_file, [row.model_dump() for row in rows])


@app.command(epilog="Example: gristmill inspect quickstart --rule code.min_chars --limit 5")
def inspect(
    recipe: RecipeName = "quickstart",
    decision: Annotated[
        Decision | None, typer.Option(help="What became of them; what could not be read: --quarantined.")
    ] = None,
    rule: Annotated[str, typer.Option(help="Documents that this rule, or one that begins so, dropped.")] = "",
    source: Annotated[str, typer.Option(help="Documents of this source.")] = "",
    doc_id: Annotated[str, typer.Option("--id", help="Documents whose name holds this.")] = "",
    quarantined: Annotated[
        bool, typer.Option(help="Records that could not be read instead (also of a --source).")
    ] = False,
    tokens: Annotated[bool, typer.Option(help="As they were encoded.")] = False,
    report: Annotated[
        bool, typer.Option(help="Say instead where the page about all of them is: a report for people.")
    ] = False,
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    overrides: Overrides = None,
) -> None:
    """Look at documents: what became of them, why, and their text."""
    with _errors():
        if quarantined:
            _check_alone(decision=decision, rule=rule, id=doc_id, tokens=tokens, report=report)
        settings = _load(recipe, overrides)
        set_environment(Home.here(), quiet=True)
        from flows.inspection import show_documents, show_report, show_set_aside
        from lmcore.data.browse import Wanted

        if report:
            show_report(settings)
        elif quarantined:
            show_set_aside(settings, source, limit)
        else:
            show_documents(settings, Wanted(decision or "", rule, source, doc_id), limit, tokens=tokens)


@app.command(epilog="Example: gristmill sync")
def sync(uri: Annotated[str, typer.Option(help="MLflow tracking URI; empty: as runs use.")] = "") -> None:
    """Tell MLflow what it missed while it was away."""
    with _errors():
        home = _set_up(quiet=True)
        from tasks.tracking import Tracker, sync_all

        done = sync_all(Tracker(uri or os.environ.get("MLFLOW_TRACKING_URI", ""), home))
        typer.echo(f"{len(done)} run(s) brought up to date")


@app.command(epilog="Example: gristmill up --prefect-port 4200 --mlflow-port 5000")
def up(
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect.", min=1, max=65535)] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow.", min=1, max=65535)] = 5000,
) -> None:
    """Start Prefect, MLflow and a worker on loopback, with every flow deployed."""
    with _errors():
        from flows import services

        found = services.up(Home.here(), prefect_port, mlflow_port, typer.echo)
        typer.echo(f"Prefect  {found['prefect'].url}")
        typer.echo(f"MLflow   {found['mlflow'].url}")
        typer.echo(f"ready after {time.monotonic() - STARTED:.0f} s; `gristmill down` stops all of it")


@app.command(epilog="Example: gristmill down")
def down() -> None:
    """Stop what `up` started."""
    with _errors():
        from flows import services

        stopped = services.down(Home.here(), typer.echo)
        typer.echo("nothing was running" if not stopped else f"stopped {', '.join(stopped)}")


@app.command(epilog="Example: gristmill doctor --data my-model.yaml")
def doctor(
    data: Annotated[
        str, typer.Option(metavar="RECIPE", help="Look at a sample of this recipe's sources instead.")
    ] = "",
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Check this machine and its services, or the sources of a recipe; print a remedy for each problem."""
    with _errors():
        _check_writable(json_file)
        from flows import display, doctor

        console = Console()
        if data:
            surveys = doctor.survey_sources(_load(data, overrides))
            for survey in surveys:
                display.show_survey(console, survey)
            findings = [finding for survey in surveys for finding in survey.findings]
            _write_json(json_file, [survey.to_json() for survey in surveys])
        else:
            findings = doctor.examine(Home.here())
            for check in findings:
                display.show_finding(console, check.state, check.name, check.found, check.remedy)
            _write_json(json_file, [vars(check) for check in findings])
        if any(finding.state == "failed" for finding in findings):
            raise typer.Exit(1)


# --- behind the commands ---------------------------------------------------------------------------


def _run_flow(
    kind: str, recipe: str, overrides: list[str] | None, json_file: Path | None, verbose: bool
) -> None:
    with _errors():
        settings = _load(recipe, overrides)
        _check_writable(json_file)
        home = _set_up(quiet=not verbose)
        server = embedded.start(home)
        from flows import catalog, display, services
        from tasks.progress import listen

        if server:
            server.wait_until_ready()
        else:
            services.wait_until_ready(home)
        console = Console()
        with display.Display(console) as shown, listen(shown):
            summary = catalog.run(kind, settings, overrides or ())
        summary = summary.model_copy(update={"wall_seconds": round(time.monotonic() - STARTED, 2)})
        display.show_summary(console, summary)
        _write_json(json_file, summary.model_dump())


def _set_up(*, quiet: bool) -> Home:
    home = Home.here()
    from flows.services import client_environment

    set_environment(home, quiet=quiet)  # first of all: a copied home must not find the original's servers
    for name, value in client_environment(home).items():
        os.environ.setdefault(name, value)
    return home


def _load(name: str, overrides: list[str] | None) -> Recipe:
    path = find_recipe(name)
    try:
        return load_recipe(path, overrides or ())
    except ConfigError as error:
        if path.parent != RECIPES or NEEDS_A_PATH not in error.found:
            raise
        remedy = f"The first lines of {path} tell of the text that it is for."
        raise ConfigError(error.problem, found=error.found, remedy=remedy) from None


def _run_module(module: str, *arguments: str) -> None:
    """Do what needs torch in a process of its own, and end as it ends."""
    sys.exit(subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode)


def _find_model(recipe_or_model: str, overrides: list[str] | None) -> Path:
    """A model directory, or the newest model of a recipe."""
    path = Path(recipe_or_model).expanduser()
    if path.is_dir():
        return path
    is_recipe = path.suffix in (".yaml", ".yml") or recipe_or_model in descriptions()
    if not is_recipe and (os.sep in recipe_or_model or path.exists()):
        return _existing_model(path)
    recipe = _load(recipe_or_model, overrides)
    from flows.explain import trained_model

    set_environment(Home.here(), quiet=True)
    return trained_model(recipe)


def _existing_model(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"there is no model at {path}",
            expected="a folder with config.json, model.safetensors and tokenizer.json",
            found="a file" if path.exists() else nearest(path),
            remedy="A run ends with the path of its model; or give the recipe that trained it.",
        )
    return path


def _check_alone(**others: Any) -> None:
    if given := [f"--{name}" for name, value in others.items() if value]:
        raise ConfigError(
            "records that could not be read have no decision, rule, name or tokens",
            expected="--quarantined alone, or with --source and --limit",
            found=f"{', '.join(given)} beside it",
        )


def _check_writable(path: Path | None) -> None:
    if path is not None and not path.resolve().parent.is_dir():
        raise ConfigError(
            f"--json {path} cannot be written",
            expected="an existing folder",
            found=nearest(path.resolve().parent),
            remedy="Make the folder first.",
        )


def _write_json(path: Path | None, value: Any) -> None:
    if path is not None:
        write_atomically(path.resolve(), json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn errors into one clear line and an exit status: 2 for wrong input, 1 for what failed."""
    try:
        yield
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except GristmillError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from what was finished", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, SystemExit):
        raise
    except Exception as error:
        handle, trace = tempfile.mkstemp(prefix="gristmill-error-", suffix=".txt", text=True)
        with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(traceback.format_exc())
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        typer.echo(f"error: this should not happen: {problem}\nThe details are in {trace}.", err=True)
        raise typer.Exit(70) from None


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to stop like Ctrl-C, with a word about it
    app()


if __name__ == "__main__":
    main()
