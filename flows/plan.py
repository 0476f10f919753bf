"""What layouts of a recipe will need on so many GPUs, as a table."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.recipe_files import find_recipe
from lmcore.config import NEEDS_A_PATH, Recipe, load_recipe
from lmcore.errors import ConfigError
from lmcore.units import BYTES, DURATIONS, ENERGIES, TIMES, number, told, unit_for

DAY = 86_400.0  # seconds
LEAST_WIDTH = 170  # of a terminal: what is too long for it goes on in its next line, and no number is cut
_AXES = {"dp_replicate": "replicas", "dp_shard": "fsdp", "tp": "tp", "pp": "pp", "cp": "cp", "ep": "ep"}


def load_for_plan(name: str, overrides: list[str]) -> Recipe:
    """A recipe, which need not say yet what it is to learn from.

    Raises:
        ConfigError: it is not right.
    """
    path = find_recipe(name)
    try:
        return load_recipe(path, overrides)
    except ConfigError as error:
        if NEEDS_A_PATH not in str(error):
            raise
        return load_recipe(path, ["data.sources.0.path=to-be-said", *overrides])


def ask(recipe: Recipe, options: dict[str, Any]) -> dict[str, Any]:
    """Plan ``recipe`` in a process that has torch, where its model is built on the meta device.

    Raises:
        ConfigError: what is asked for is not to be had.
    """
    request = {
        "model": recipe.model.model_dump(mode="json"),
        "train": recipe.train.model_dump(mode="json"),
        "vocab_size": recipe.data.tokenizer.vocab_size,
        **options,
    }
    done = subprocess.run(
        [sys.executable, "-m", "lmcore.plan"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 2:
        raise ConfigError(done.stderr.strip().removeprefix("error: ").rstrip("."))
    if done.returncode:
        raise RuntimeError(f"the planner ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def show_plan(name: str, plan: dict[str, Any]) -> None:
    """Print what is planned for, a row for each layout, what is sent, and why the first is taken."""
    gpu = plan["gpu"]
    console = Console(width=max(LEAST_WIDTH, Console().width))
    console.print(
        f"{name}: {plan['parameters']:,} parameters, {plan['tokens']:,} tokens in {plan['steps']:,} steps of "
        f"{plan['global_batch_tokens']:,}; {plan['precision']}, {plan['optimizer']}",
        highlight=False,
    )
    console.print(
        f"{plan['gpus']:,} {gpu['name']} of {told(plan['gpu_memory_bytes'], BYTES, 2)} "
        f"({told(plan['room_bytes'], BYTES, 2)} of them for us), {plan['gpus_per_node']} a node; "
        f"{plan['num_layouts']:,} layouts divide the model and the batch\n",
        highlight=False,
    )
    console.print(_memory_and_time(plan))
    console.print(_messages(plan))
    for index, layout in enumerate(plan["layouts"]):
        sign = "->" if index == 0 else f"{index + 1:>2}"
        console.print(f"{sign} {_layout(layout)}: {escape(layout['why'])}", highlight=False, soft_wrap=True)
    console.print(f"\n{_rates(plan)}", highlight=False, soft_wrap=True)
    if plan["warning"]:
        console.print(f"\nwarning: {plan['warning']}", highlight=False, markup=False, soft_wrap=True)


def _memory_and_time(plan: dict[str, Any]) -> Table:
    best = plan["layouts"][0]
    # A column has the unit that fits the layout to take.
    memory_unit, a_byte = unit_for([best["memory_bytes"]["total"]], BYTES)
    places = _places(best["memory_bytes"]["total"] / a_byte)
    step_unit, a_second = unit_for([best["step_seconds"]["total"]], TIMES)
    run_unit, a_day = unit_for([best["days"] * DAY], DURATIONS)
    energy_unit, a_wh = unit_for([best["kwh"] * 1000], ENERGIES)
    title = f"{memory_unit} of the fullest process; a run"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("layout", no_wrap=True)
    numbers = (
        "weights",
        "grads",
        "optim",
        "gather",
        "active",
        "logits",
        "total",
        f"step {step_unit}",
        "MFU",
        run_unit,
        energy_unit,
    )
    for heading in (*numbers, plan["rates"]["currency"]):
        table.add_column(heading, justify="right", no_wrap=True)
    for layout in plan["layouts"]:
        memory = layout["memory_bytes"]
        parts = ("parameters", "gradients", "optimizer", "gathered", "activations", "logits", "total")
        table.add_row(
            _layout(layout),
            *(f"{memory[part] / a_byte:,.{places}f}" for part in parts),
            f"{layout['step_seconds']['total'] / a_second:.2f}",
            f"{layout['mfu']:.1%}",
            f"{layout['days'] * DAY / a_day:.1f}",
            f"{layout['kwh'] * 1000 / a_wh:,.1f}",
            "-" if layout["cost"] is None else number(layout["cost"]),
            style="" if layout["fits"] else "dim",
        )
    return table


def _messages(plan: dict[str, Any]) -> Table:
    sent = sorted({axis for layout in plan["layouts"] for axis in layout["sent_bytes_per_step"]})
    layouts = plan["layouts"]
    unit, a_second = unit_for([layouts[0]["step_seconds"]["total"]], TIMES)
    most = max((sum(layout["sent_bytes_per_step"].values()) for layout in layouts), default=0.0)
    sent_unit, a_byte = unit_for([most], BYTES)
    places = _places(most / a_byte)
    title = f"\n{sent_unit} that a process sends in a step, and {unit} that nothing hides; {unit} of the rest"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("layout", no_wrap=True)
    for heading in (*sent, "matmul", "attn", "mem", "opt", "idle"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layout in plan["layouts"]:
        seconds = layout["step_seconds"]
        cells = [
            f"{layout['sent_bytes_per_step'][axis] / a_byte:,.{places}f} "
            f"{seconds['exposed'].get(axis, 0.0) / a_second:.2f}{unit}"
            if axis in layout["sent_bytes_per_step"]
            else "-"
            for axis in sent
        ]
        rest = (
            f"{seconds[part] / a_second:.2f}"
            for part in ("products", "attention", "memory", "optimizer", "bubble")
        )
        table.add_row(_layout(layout), *cells, *rest)
    return table


def _places(whole: float) -> int:
    """Digits after the point of columns of bytes: parts of a few GB are worth one more."""
    return 2 if whole < 10 else 1


def _layout(layout: dict[str, Any]) -> str:
    """A layout in few words: its axes, its pipeline's order, its micro-batch, what is computed again."""
    sizes = [f"{word} {layout['layout'][axis]}" for axis, word in _AXES.items() if layout["layout"][axis] > 1]
    schedule, mode = layout["pipeline_schedule"], layout["activation_checkpointing"]
    if schedule == "interleaved_1f1b":
        sizes.append(f"interleaved {layout['stages_per_process']}")
    elif schedule not in (None, "1f1b"):
        sizes.append(schedule)
    again = "" if mode == "none" else f", {mode} ckpt"
    eager = "" if layout["compiled"] else ", eager"
    return f"{' '.join(sizes) or 'one'}, mb {layout['micro_batch_size']}{again}{eager}"


def _rates(plan: dict[str, Any]) -> str:
    rates, gpu = plan["rates"], plan["gpu"]
    prices = []
    if rates["per_gpu_hour"] is not None:
        prices.append(f"{rates['per_gpu_hour']:g} {rates['currency']} a GPU-hour")
    if rates["per_kwh"] is not None:
        prices.append(f"{rates['per_kwh']:g} {rates['currency']} a kWh")
    text = f"Energy is at most this: {gpu['node_watts']:.0f} W a GPU with its share of the node, "
    text += f"x {rates['overhead']:g} for the building. "
    peak = plan["mfu_peak"]
    text = f"MFU is of {peak['flops'] / 1e12:,.4g} TFLOP/s a GPU, {peak['source']}. {text}"
    text += f"Cost at {' and '.join(prices)}." if prices else "No price was said (--price-per-gpu-hour)."
    took = f"{plan['seconds']:.1f} s, {plan['processor_seconds']:.1f} of a processor"
    return f"{text} Times are of steps alone. Planned in {took}."
