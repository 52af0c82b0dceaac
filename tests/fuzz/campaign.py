"""Run commands on damaged input, and count how they end.

    python tests/fuzz/campaign.py --mutations 1200 --seed 0 --output /tmp/fuzz.jsonl

Each mutation damages one file (see `mutations.py`), runs a command that reads it in this process (see `inputs.py`),
and puts the file back. A command may end well, or with one sentence that names what is damaged; sentences that do not
(`vague`) or are longer (`lines`), tracebacks and hangs are faults. The same seed gives the same mutations.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries are imported
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "support")]

from inputs import TARGETS, Target, make_inputs
from mutations import MUTATIONS

from spa3r.trainers.integrations.cli import main as spa3r
from spa3r.trainers.runs.errors import EXPECTED

OUTCOMES = ("ok", "sentence", "vague", "lines", "traceback", "hang")
FAULTS = ("vague", "lines", "traceback", "hang")
# Longer than any command takes on a machine that others use, too.
SECONDS = 1800


@dataclass
class Ending:
    """How a command ended on one mutation; `detail` is its sentence or its traceback."""

    kind: str
    command: str
    file: str
    mutation: str
    outcome: str
    detail: str = ""


class Hung(BaseException):
    """A command took too long."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what commands print nowhere."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def run(arguments: Sequence, seconds: int) -> tuple[str, str]:
    """Run `spa3r ARGUMENTS` for some seconds, or for ever; returns how it ended, and its sentence or traceback."""

    def stop(*_):
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    environment = dict(os.environ)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            spa3r([*map(str, arguments)])
        return "ok", ""
    except SystemExit as ended:
        return _how_it_ended(ended)
    except Hung:
        return "hang", traceback.format_exc()
    except BaseException:
        return "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.environ.clear()
        os.environ.update(environment)


def _how_it_ended(ended: SystemExit) -> tuple[str, str]:
    """Only errors that a command foresees count as explained, whatever its last words are."""
    cause = ended.__context__
    if ended.code in (None, 0):
        return "ok", ""
    if cause is not None and not isinstance(cause, (*EXPECTED, argparse.ArgumentError, KeyboardInterrupt)):
        return "traceback", "".join(traceback.format_exception(cause))
    return "lines" if "\n" in str(ended.code) else "sentence", str(ended.code)


def mutate_and_run(root: Path, pristine: Path, target: Target, draw: random.Random, seconds: int) -> Ending:
    """Damage a file of a target, run its command, and restore what the command read and wrote."""
    files = sorted(path for path in root.glob(target.damaged) if path.is_file())
    file, kind = draw.choice(files), draw.choice(list(MUTATIONS))
    out = root / "out"
    out.mkdir()
    try:
        MUTATIONS[kind](file, draw)
        outcome, detail = run(target.command(root, out), seconds)
    finally:
        shutil.rmtree(out)
        for part in target.copied:
            shutil.rmtree(root / part)
            shutil.copytree(pristine / part, root / part)
    command = str(target.command(root, out)[0])
    # A recipe's sentences name the option.
    named = [file.name, *(str(root / part) for part in target.copied)]
    if outcome == "sentence" and target.kind != "recipe" and not any(name in detail for name in named):
        outcome = "vague"
    return Ending(target.kind, command, str(file.relative_to(root)), kind, outcome, detail)


def endings(
    root: Path, number: int, seed: int, targets: Sequence[Target] = TARGETS, seconds: int = SECONDS
) -> Iterator[Ending]:
    """Damage one target after another, and tell how its command ends.

    Args:
        root (`Path`): Inputs from `make_inputs`.
        number (`int`): How many mutations.
        seed (`int`): Decides which.
        targets (`Sequence[Target]`, *optional*): What to damage; by default everything.
        seconds (`int`, *optional*): After which a command hangs; 0 for no limit.
    """
    pristine = root.with_name(root.name + ".pristine")
    if not pristine.exists():
        shutil.copytree(root, pristine)
    for index in range(number):
        yield mutate_and_run(root, pristine, targets[index % len(targets)], random.Random(f"{seed}/{index}"), seconds)


def format_table(found: Sequence[Ending]) -> str:
    """How many mutations of each kind of input ended in which way."""
    counts = Counter((ending.kind, ending.outcome) for ending in found)
    lines = [f"| input | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * len(OUTCOMES)]
    for kind in [*dict.fromkeys(target.kind for target in TARGETS), "all"]:
        row = [sum(n for (k, o), n in counts.items() if o == outcome and kind in (k, "all")) for outcome in OUTCOMES]
        lines.append(f"| {kind} | {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main():
    """Run a campaign; the exit status is 1 if a command ended badly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="one kind of input alone")
    parser.add_argument("--output", type=Path, help="JSON lines of all endings")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="spa3r-fuzz-") as folder:
        root = Path(folder) / "inputs"
        root.mkdir()
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            make_inputs(root)
        log = options.output.open("w") if options.output else None
        targets = [target for target in TARGETS if options.kind in (None, target.kind)]
        for ending in endings(root, options.mutations, options.seed, targets):
            found.append(ending)
            if log:
                print(
                    json.dumps(asdict(ending)),
                    file=log,
                    flush=True,
                )
    print(format_table(found))
    sys.exit(any(ending.outcome in FAULTS for ending in found))


if __name__ == "__main__":
    main()
