"""Run short instruction tunings again and again, and count those that do not end with exit 0.

    python tests/benchmarks/repeat_runs.py --runs 50

A thread or a process group that outlives a run shows as a rare abort at exit; load beside it makes it more frequent.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from tiny_instructions import command_line, write_instructions
from tiny_spa3_vlm import tiny_model, tiny_processor
from two_processes import launch


def start(topology: str, arguments: list[str], log: Path) -> subprocess.Popen:
    """Start a run of one process, or of two by a launch file."""
    if topology != "single":
        return launch(topology, "sft", arguments, log)
    with log.open("w") as file:
        return subprocess.Popen([sys.executable, "-m", "spa3r", "sft", *arguments], stdout=file, stderr=file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="of each topology (default: %(default)s)")
    parser.add_argument("--topologies", nargs="+", default=["single", "ddp", "zero2", "zero3", "fsdp2"])
    options = parser.parse_args()
    failed = dict.fromkeys(options.topologies, 0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_instructions(place / "set", num_records=2)
        tiny_model().save_pretrained(place / "vlm")
        tiny_processor().save_pretrained(place / "vlm")
        for number in range(options.runs):
            for topology in options.topologies:
                log = place / f"{topology}_{number}.log"
                arguments = command_line(
                    *(place / "vlm", place / "set", place / f"{topology}_{number}"),
                    **{"max_steps": 1, "per_device_train_batch_size": 1, "save_strategy": "no", "use_cpu": None},
                )
                if start(topology, arguments, log).wait():
                    failed[topology] += 1
                    print(log.read_text(), file=sys.stderr)
            print(f"{number + 1} runs each, failed: {failed}", flush=True)
    sys.exit(any(failed.values()))


if __name__ == "__main__":
    main()
