"""Make the nano world from nothing: rooms, teachers, Spa3R, a language model, Spa3-VLM, its controls and all scores.

    spa3r world
    spa3r world --device cuda --output runs/world-gpu
    spa3r world --smoke --output runs/smoke
    spa3r world --ablations --seeds 0 1

Every stage is a command of its own, whose output goes to <output>/logs. Two run at a time where there are two cores,
four on a GPU.
The same command, run again after an interruption, goes on where it stopped. The result tables stand in the folders of
their stages, and are printed at the end. <output>/nano holds the checkpoints in the form in which they ship.
With --ablations, the variants of the paper's Tables 3 to 7 follow, each with several seeds. Give it from the start, or
for a world that stands already.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ...data_scripts.common.command_line import verb_parser
from ...data_scripts.common.files import claim_folder, write_json
from ...data_scripts.common.locks import only_run_in
from .ablations import list_ablations
from .stages import Stage, list_stages, sizes_of

SEEDS = (0, 1)
SECONDS_BETWEEN_LOOKS = 0.5
LAST_LINES = 5
# How `spa3r teach` prints what it measured.
MEASURED = re.compile(r"^[a-z_]+ +-?\d+\.\d{4}$", re.MULTILINE)


class Running(Protocol):
    """What starting a stage returns; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """The exit status, or `None` while the stage runs."""

    def terminate(self): ...

    def wait(self): ...


def run_stages(stages: Sequence[Stage], folder: Path, jobs: int, start: Callable[[Stage, Path], Running]):
    """Run all stages that are not done yet, each when what it needs is done.

    Args:
        stages (`Sequence[Stage]`): See `list_stages`.
        folder (`Path`): Where the world is made.
        jobs (`int`): Most stages at a time.
        start (`Callable`): Starts a stage, given the file of its log.

    Raises:
        ValueError: If a stage fails, or one was done by another command.
    """
    done = {stage.name for stage in stages if is_done(stage, folder)}
    waiting = [stage for stage in stages if stage.name not in done]
    running: list[tuple[Stage, Running, float]] = []
    try:
        while waiting or running:
            ready = [stage for stage in waiting if done.issuperset(stage.needs)]
            for stage in ready[: jobs - len(running)]:
                left = minutes_left(stages, done, jobs)
                expected = f"; {stage.minutes:g} of {left:.0f} minutes" if left else ""
                print(f"{stage.name}: {stage.what}{expected}", flush=True)
                waiting.remove(stage)
                running.append((stage, start(stage, log_of(stage, folder)), time.monotonic()))
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for entry in list(running):
                stage, process, began = entry
                if (status := process.poll()) is None:
                    continue
                running.remove(entry)
                if status != 0:
                    raise ValueError(_describe_failure(stage, folder, status))
                _note_done(stage, folder, began)
                done.add(stage.name)
    finally:
        for _, process, _ in running:
            process.terminate()
        for stage, process, began in running:
            process.wait()
            # It may have come to its end just before it was told to.
            if process.poll() == 0:
                _note_done(stage, folder, began)


def _note_done(stage: Stage, folder: Path, began: float):
    write_json(_mark(stage, folder), {"command": stage.command, "seconds": time.monotonic() - began})


def start_process(stage: Stage, log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start a stage in a process of its own; both its outputs go to its log, behind those of earlier tries."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *stage.command], stdout=file, stderr=file, env=os.environ | environment
        )


def is_done(stage: Stage, folder: Path) -> bool:
    """Whether a stage was completed.

    Raises:
        ValueError: If it was, but by another command.
    """
    mark = _mark(stage, folder)
    if not mark.is_file():
        return stage.result is not None and (folder / stage.result).is_dir()
    before = json.loads(mark.read_text(encoding="utf-8"))["command"]
    if before != list(stage.command):
        different = [part for part in stage.command if part not in before] or list(stage.command)
        raise ValueError(
            f"`{folder}` holds a `{stage.name}` that another command made, without {' '.join(different)}: choose "
            f"another --output, or remove `{mark}` and what the stage made."
        )
    return True


def minutes_left(stages: Sequence[Stage], done: set[str], jobs: int) -> float:
    """At least how long the rest takes: with all cores busy, and along the longest chain of stages."""
    ends = dict.fromkeys(done, 0.0)
    for stage in stages:
        if stage.name not in done:
            ends[stage.name] = stage.minutes + max((ends[name] for name in stage.needs), default=0.0)
    total = sum(stage.minutes for stage in stages if stage.name not in done)
    return max(total / jobs, *ends.values())


def log_of(stage: Stage, folder: Path) -> Path:
    """The file of a stage's output."""
    return folder / "logs" / f"{stage.name}.log"


def _mark(stage: Stage, folder: Path) -> Path:
    """The file that says that a stage is done, by which command and in how many seconds."""
    return folder / "done" / f"{stage.name}.json"


def _describe_failure(stage: Stage, folder: Path, status: int) -> str:
    log = log_of(stage, folder)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:] if log.is_file() else []
    return (
        f"The stage `{stage.name}` failed with status {status}; the same command goes on there once its reason is "
        f"gone. The end of `{log}`: {' '.join(line.strip() for line in lines)}"
    )


def format_times(stages: Sequence[Stage], folder: Path) -> str:
    """A table of all stages: what they do, and the minutes expected on one core and measured here."""
    lines = ["| stage | what | minutes on one core | here |", "|---|---|---:|---:|"]
    for stage in stages:
        mark = _mark(stage, folder)
        here = f"{json.loads(mark.read_text())['seconds'] / 60:.1f}" if mark.is_file() else "–"
        lines.append(f"| {stage.name} | {stage.what} | {stage.minutes or '–'} | {here} |")
    return "\n".join(lines)


def format_results(stages: Sequence[Stage], folder: Path) -> str:
    """All result tables, and what the teachers measured on rooms held out of their training."""
    parts = []
    for stage in stages:
        log = log_of(stage, folder)
        measured = MEASURED.findall(log.read_text(encoding="utf-8", errors="replace")) if log.is_file() else []
        if stage.table is not None:
            parts.append(f"## {stage.name}\n\n{(folder / stage.table).read_text(encoding='utf-8').strip()}")
        elif measured and "teach" in stage.command:
            # Those of the last try.
            unique = dict(line.split() for line in measured)
            rows = "\n".join(f"| {name} | {value} |" for name, value in unique.items())
            parts.append(f"## {stage.name}\n\n| held-out rooms | |\n|---|---:|\n{rows}")
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None):
    """Run `spa3r world`."""
    parser = verb_parser("world", __doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/world"), help="folder (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--smoke", action="store_true", help="a tiny world of two steps, to see that all works")
    parser.add_argument("--ablations", action="store_true", help="also make the variants of the paper's Tables 3 to 7")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="of the ablations (default: 0 1)")
    options = parser.parse_args(arguments)
    if options.seeds and not options.ablations:
        parser.error(f"--seeds (here: {' '.join(map(str, options.seeds))}) are those of --ablations; add it")
    seeds = sorted(set(options.seeds or SEEDS)) if options.ablations else []
    folder = options.output
    if options.device == "cuda":
        from ..runs.devices import usable_device  # here, so that --help does not wait for torch

        usable_device(options.device)
    with only_run_in(folder):
        claim_folder(folder / "world.json", json.dumps({"device": options.device, "smoke": options.smoke}) + "\n")
        make_world(folder, options.device, options.smoke, seeds)


def make_world(folder: Path, device: str, is_smoke: bool, seeds: Sequence[int] = ()):
    """Run all stages that are left, and print times and results; with `seeds`, those of the ablations, too."""
    cores = os.cpu_count() or 1
    for name in ("logs", "done"):
        (folder / name).mkdir(exist_ok=True)
    stages = list_stages(folder, device, is_smoke)
    if seeds:
        stages += list_ablations(folder, seeds, device, is_smoke)
    jobs = min(sizes_of(device, is_smoke).jobs, cores)
    environment = {"OMP_NUM_THREADS": str(cores // jobs)} | ({} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""})
    print(format_times(stages, folder))
    run_stages(stages, folder, jobs, lambda stage, log: start_process(stage, log, environment))
    print(f"\n{format_times(stages, folder)}\n\n{format_results(stages, folder)}")
