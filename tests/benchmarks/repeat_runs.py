"""Run short instruction tunings again and again, and count those that do not end with exit 0.

    python tests/benchmarks/repeat_runs.py --runs 50 --record repeat_runs.jsonl

The record gets a line for each run; started again with it, the script goes on from its counts.
A thread or a process group that outlives a run shows as a rare abort at exit; load beside it makes it more frequent.
Each process is a fork of this one, which has imported the libraries, so that a run takes seconds of CPU time. It gets
the environment that `accelerate launch` gives, and Python exits in it as it always does.
"""

import argparse
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from cpu_as_accelerator import declare_cpu_an_accelerator, require_no_busy_threads_of_gloo
from killing import run
from tiny_instructions import command_line, write_instructions
from tiny_spa3_vlm import tiny_model, tiny_processor
from two_processes import REPOSITORY

from spa3r.trainers.integrations.cli import main as spa3r

WRITE_ENVIRONMENT = """
import json, os, sys
json.dump(dict(os.environ), open(os.path.join(sys.argv[1], os.environ["RANK"] + ".json"), "w"))
"""


def make_inputs(place: Path):
    """A model and an instruction set."""
    write_instructions(place / "set", num_records=2)
    tiny_model().save_pretrained(place / "vlm")
    tiny_processor().save_pretrained(place / "vlm")


def environments_of(topology: str, place: Path) -> list[dict[str, str]]:
    """What `accelerate launch` adds to the environment of each process."""
    if topology == "single":
        return [{}]
    folder = place / topology
    folder.mkdir()
    (place / "write_environment.py").write_text(WRITE_ENVIRONMENT)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"configuration/accelerate/{topology}.yaml", "--num_processes", "2"]
    command += ["--mixed_precision", "no", "--main_process_port", "0", place / "write_environment.py", folder]
    subprocess.run(command, cwd=REPOSITORY, check=True, stderr=subprocess.DEVNULL)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    added = [{name: value for name, value in each.items() if os.environ.get(name) != value} for each in found]
    # The first process meets the others itself; the launcher is gone.
    return [each | {"TORCHELASTIC_USE_AGENT_STORE": "False"} for each in added]


def start(topology: str, environment: dict[str, str], arguments: list[str], log: Path) -> int:
    """Start a process of a run, and return its id; in that process itself, exit."""
    if pid := os.fork():
        return pid
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    if topology in ("single", "ddp"):
        arguments = [*arguments, "--use_cpu", "true"]
    else:
        declare_cpu_an_accelerator()
    spa3r(["sft", *arguments])
    require_no_busy_threads_of_gloo()
    sys.exit()


def run_once(topology: str, environments: list[dict[str, str]], place: Path) -> list[int]:
    """Run all processes of a training, and return their exit codes; what it wrote is removed if all are 0."""
    output, log = place / "run", place / "log.txt"
    shutil.rmtree(output, ignore_errors=True)
    log.write_text("")
    options = {"max_steps": 1, "per_device_train_batch_size": 1, "save_strategy": "no", "use_cpu": None}
    arguments = command_line(place / "vlm", place / "set", output, **options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = {"MASTER_PORT": str(free.getsockname()[1])}
    started = [start(topology, each | port, arguments, log) for each in environments]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
    if any(codes):
        print(f"{topology} ended with {codes}:\n{log.read_text()}", file=sys.stderr)
    return codes


def read_record(record: Path | None, topologies: list[str]) -> dict[str, list[bool]]:
    """For each topology, whether each run that was recorded failed."""
    failed = {topology: [] for topology in topologies}
    if record and record.exists():
        for line in record.read_text().splitlines():
            outcome = json.loads(line)
            failed.setdefault(outcome["topology"], []).append(any(outcome["exit_codes"]))
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="of each topology (default: %(default)s)")
    parser.add_argument("--topologies", nargs="+", default=["single", "ddp", "zero2", "zero3", "fsdp2"])
    parser.add_argument("--record", type=Path, help="JSON lines, one a run; a file that exists is gone on with")
    options = parser.parse_args()
    failed = read_record(options.record, options.topologies)
    place = Path(tempfile.mkdtemp(prefix="repeat-"))  # not in a `with`, which the processes would leave, too
    assert run(lambda: make_inputs(place), place, place / "log.txt").status == 0, (place / "log.txt").read_text()
    environments = {topology: environments_of(topology, place) for topology in options.topologies}
    for module in ("spa3r.trainers.tuning.sft", "deepspeed"):
        importlib.import_module(module)
    for number in range(1, options.runs + 1):
        for topology in options.topologies:
            if len(failed[topology]) >= number:
                continue
            codes = run_once(topology, environments[topology], place)
            failed[topology].append(any(codes))
            if options.record:
                with options.record.open("a") as file:
                    file.write(json.dumps({"topology": topology, "exit_codes": codes}) + "\n")
        counts = {topology: f"{sum(runs)} of {len(runs)}" for topology, runs in failed.items()}
        print(f"{number} runs each, failed: {counts}", flush=True)
    shutil.rmtree(place)
    sys.exit(any(map(any, failed.values())))


if __name__ == "__main__":
    main()
