"""What only a GPU can tell: whether Spa3R computes the same there, and how fast.

    python tests/gpu/run.py --output runs/gpu.json --minutes 9
    python tests/gpu/run.py --device cpu --tiny --output runs/gpu_tiny.json    # a rehearsal
    python tests/gpu/run.py --table runs/gpu.json                              # for docs/performance.md

Parts run one after another in a worker process. A part that fails, crashes or takes too long does not stop the rest,
and the file is written anew after each. Started again with the same file, only what has not finished runs. This
process imports nothing but Python's library, so that nothing can break it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
# So that the modules of this folder have names of their own: `gpu.parts`.
sys.path.insert(0, str(FOLDER.parent))

from gpu.parts import PARTS  # noqa: E402
from gpu.tables import print_summary, table_of  # noqa: E402

FINISHED = ("passed", "missed")
# Seconds for a worker to import torch and transformers on a machine that has just started.
START_LIMIT = 150
# Nothing is downloaded, and no library warns that it forks.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# Characters of a worker's output to keep when it dies.
LOG_TAIL = 3000


class Worker:
    """A process that runs the parts it is told, and leaves the result of each in a folder."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.folder, self.log = folder, folder / "worker.log"
        command = [sys.executable, "-u", str(FOLDER / "worker.py"), str(folder), options.device]
        command += ["--tiny"] if options.tiny else []
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": import_path(folder)} | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self.ready = False

    def run(self, name: str, limit: float) -> dict:
        """The result of a part; `limit` is in seconds."""
        if not self.ready:
            if not self.wait_for(self.folder / "ready", START_LIMIT):
                return self.lost("The worker did not start.", {})
            self.ready = True
        result, partial = self.folder / f"{name}.json", self.folder / f"{name}.partial.json"
        start = time.monotonic()
        try:
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
        except OSError as error:
            return self.lost(f"The worker is gone: {error!r}.", {})
        if self.wait_for(result, limit):
            return json.loads(result.read_text())
        passed = time.monotonic() - start
        reason = f"Stopped after {passed:.0f} s." if self.process.poll() is None else "The worker died."
        return self.lost(reason, json.loads(partial.read_text()) if partial.exists() else {})

    def wait_for(self, file: Path, limit: float) -> bool:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if file.exists():
                return True
            if self.process.poll() is not None:
                return file.exists()
            time.sleep(0.1)
        return file.exists()

    def lost(self, reason: str, noted: dict) -> dict:
        """What remains of a part whose worker is lost; the worker's last words say why."""
        self.stop()
        log = self.log.read_text(errors="replace")[-LOG_TAIL:]
        return {"status": "failed", "figures": {}, "checks": []} | noted | {"error": f"{log}\n{reason}"}

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self):
        """End the worker and what it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def import_path(folder: Path) -> str:
    """PYTHONPATH that finds this checkout as the installed package `spa3r`, whether it is installed or not."""
    site = folder / "site"
    metadata = site / "spa3r-0.1.0.dist-info"
    if not metadata.exists():
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: spa3r\nVersion: 0.1.0\n")
        (site / "spa3r").symlink_to(ROOT, target_is_directory=True)
    paths = [site, ROOT / "tests", ROOT / "tests" / "support"]
    return os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])


def parse_options(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models: a rehearsal, whose figures mean nothing")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.json"), help="the file of all results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--again", nargs="+", choices=PARTS, default=[], metavar="PART", help="also if finished")
    parser.add_argument("--minutes", type=float, default=9, help="no part is started that cannot end within these")
    parser.add_argument("--commit", help="of this checkout, where git cannot tell")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a file of results, run nothing")
    return parser.parse_args(arguments)


def commit_of_checkout() -> str | None:
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write(results: dict, file: Path):
    """Replace the file at once, so that it is whole at any time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(new, file)


def choose_parts(options: argparse.Namespace, done: dict) -> list[str]:
    """Parts to run: those that never ran before those that failed; none that finished."""
    names = options.parts or [*PARTS]
    left = [name for name in names if done.get(name, {}).get("status") not in FINISHED or name in options.again]
    left += [name for name in options.again if name not in left]
    return sorted(left, key=lambda name: name in done and name not in options.again)


def run_parts(options: argparse.Namespace) -> dict:
    """Run what is left, within the time."""
    end = time.monotonic() + 60 * options.minutes
    results = json.loads(options.output.read_text()) if options.output.exists() else {"parts": {}}
    settings = {"device": options.device, "tiny": options.tiny, "commit": options.commit or commit_of_checkout()}
    results["settings"] = settings
    worker = None
    with tempfile.TemporaryDirectory(prefix="spa3r_gpu_") as folder:
        for number, name in enumerate(choose_parts(options, results["parts"])):
            part, left = PARTS[name], end - time.monotonic()
            if left < (1 if options.tiny else part.expected):
                print(f"{name}: not started, {left:.0f} s are left", flush=True)
                continue
            if worker is None or not worker.alive:
                (place := Path(folder, str(number))).mkdir()
                worker = Worker(options, place)
            start = time.monotonic()
            # A busy CPU takes longer than an H100, however tiny the models.
            result = worker.run(name, min(part.limit * (5 if options.device == "cpu" else 1), left))
            result["seconds"] = round(time.monotonic() - start, 1)
            if (worker.folder / "ready").exists():
                results["machine"] = json.loads((worker.folder / "ready").read_text())
            result["commit"] = settings["commit"]
            results["parts"][name] = result
            write(results, options.output)
            print(f"{name}: {result['status']} in {result['seconds']:.1f} s", flush=True)
            if not worker.ready:
                print(result["error"], flush=True)
                break
        if worker is not None:
            worker.stop()
    return results


def main():
    options = parse_options()
    if options.table:
        print(table_of(json.loads(options.table.read_text())))
        return
    results = run_parts(options)
    print_summary(results)
    print(table_of(results))
    statuses = [result["status"] for result in results["parts"].values()]
    sys.exit(any(status != "passed" for status in statuses))


if __name__ == "__main__":
    main()
