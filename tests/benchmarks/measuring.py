"""What the benchmarks share: options, clocks, tables, and the file of figures.

Variants take turns within one run and the median of the repeats counts, so that their ratios hold on any machine. On
CPU one thread computes and its processor time counts, which other work on the machine disturbs little; on CUDA it is
time passed until the device has finished.

torch is imported by the functions that need it, because some benchmarks measure the memory of processes without it.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

# The tiny model and its inputs, which tests use too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write all figures to this JSON file")
    return parser


def make_model_parser(description: str, presets: Iterable[str], repeats: int) -> argparse.ArgumentParser:
    """A parser with the options of a benchmark that runs a model; `parse_model_options` reads them."""
    parser = make_parser(description)
    parser.add_argument("--preset", choices=presets, default="small", help="sizes of the model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def parse_model_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options, and compute with one thread on a CPU."""
    import torch

    options = parser.parse_args(arguments)
    options.device, options.dtype = torch.device(options.device), getattr(torch, options.dtype)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device} needs a GPU that torch can use, and there is none; leave it out")
    if options.device.type == "cpu":
        # Threads that wait for one another, as they do on a busy machine, would spend processor time on it.
        torch.set_num_threads(1)
    return options


def timed(function: Callable[[], Any], device) -> tuple[Any, float]:
    """What a function returns, and the seconds it takes."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    result = function()
    synchronize(device)
    return result, clock() - start


def synchronize(device):
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def compare_times(variants: dict[Any, Callable[[], Any]], repeats: int, device) -> dict[Any, float]:
    """Median seconds of each variant; they take turns, after each has run once to warm up."""
    seconds = {name: [] for name in variants}
    with tqdm(total=(1 + repeats) * len(variants), desc="Timing", unit="run", leave=False) as progress:
        for _ in range(1 + repeats):
            for name, function in variants.items():
                seconds[name].append(timed(function, device)[1])
                progress.update()
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def shares(runs: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Median seconds of each part over several runs and its share of their sum, which is the last row."""
    medians = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    medians["all"] = total = sum(medians.values())
    return [{"part": part, "seconds": value, "share": value / total} for part, value in medians.items()]


def verdicts(now: dict[str, float], before: dict[str, float], tolerance: float) -> list[dict[str, object]]:
    """What became of each line: its change, and whether it is `worse` or `better` by more than the tolerance."""
    rows = []
    for line in before | now:
        if line not in now or line not in before:
            rows.append(
                {"line": line, "committed": before.get(line, ""), "now": now.get(line, ""), "verdict": "new or gone"}
            )
            continue
        change = now[line] / before[line] - 1
        verdict = "worse" if change > tolerance else "better" if change < -tolerance else "same"
        rows.append(
            {"line": line, "committed": before[line], "now": now[line], "verdict": f"{verdict}, {change:+.0%}"}
        )
    return rows


def peak_megabytes(who: int = resource.RUSAGE_SELF) -> float:
    """Largest resident set so far of this process, or of its largest child."""
    return resource.getrusage(who).ru_maxrss / 1024


def print_table(title: str, rows: Sequence[dict[str, Any]]):
    """Print figures by name under a title: a line for each row, and a column for each number and each text."""
    names = [name for name, value in rows[-1].items() if isinstance(value, (str, int, float))]
    table = [[name.replace("_", " ") for name in names]]
    table += [[_as_text(row.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title}")
    for row in (table[0], ["-" * width for width in widths], *table[1:]):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _as_text(value: str | float) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def print_verdict(target: str, is_met: bool):
    print(f"Target, {target}: {'met' if is_met else 'MISSED'}.")


def write_figures(options: argparse.Namespace, **figures: Any):
    """Write the figures of all parts with the options they were measured by, if `--output` names a file."""
    from spa3r.data_scripts.common.files import write_json

    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: str(value) for name, value in vars(options).items() if name != "output"}
        write_json(options.output, {"settings": settings, "torch": version("torch"), **figures})
