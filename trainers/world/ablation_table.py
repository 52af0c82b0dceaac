"""Put the scores of the nano world's ablations beside those of the paper's Tables 3 to 7.

    python -m spa3r.trainers.world.ablation_table --world runs/world --seeds 0 1 --output runs/world/ablations-0-1.md

The answers of all seeds of a variant are pooled: its score is the mean over the seeds, and its interval resamples
rooms, each with the answers of all seeds about it. Intervals do not show how much another seed would change.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data_scripts.benchmarks.protocol import mean
from ...data_scripts.benchmarks.vsi_bench import NUMBER_TYPES, average_tasks
from ...data_scripts.common.files import write_text
from ..benchmark.comparison import read_answers
from ..benchmark.formatting import counted, format_interval, format_number, format_percent, format_table
from ..benchmark.report import COMPARABLE, read_report
from ..benchmark.statistics import LEVEL, SceneScores, bootstrap_intervals
from .ablations import score_of


@dataclass(frozen=True)
class PaperTable:
    """
    A table of the paper.

    title (`str`): Its number, and what varies.
    rows (`Mapping[str, tuple]`): Label, and the paper's percent in each of `COLUMNS`, by the name of a variant.
    note (`str`): How it differs from the paper's, apart from its size.
    """

    title: str
    rows: Mapping[str, tuple[str, float, float, float]]
    note: str = ""


COLUMNS = {"numerical": "Numerical", "choice": "Multiple choice", "average": "Avg."}
FULL = (60.4, 56.8, 58.6)
TABLES = (
    PaperTable(
        "Table 3: representation of the scene",
        {
            "none": ("none", 58.4, 43.5, 50.9),
            "vggt": ("VGGT features", 60.5, 49.5, 55.1),
            "default": ("Spa3R latents", *FULL),
        },
        "All were aligned before tuning, unlike the paper's: of the first model, which has no adapter, the language "
        "model alone.",
    ),
    PaperTable(
        "Table 4: targets of pre-training",
        {
            "geometry": ("geometry", 60.5, 54.4, 57.5),
            "semantic": ("semantic", 59.0, 54.4, 56.7),
            "default": ("both", *FULL),
        },
        "The semantic teacher is a DINOv3 of rooms; the paper's row of CLIP has no counterpart.",
    ),
    PaperTable(
        "Table 5: integration",
        {
            "none": ("none", 58.4, 43.5, 50.9),
            "append": ("sequence append", 58.5, 43.7, 51.1),
            "unaligned": ("cross-attention", *FULL),
        },
        "Only the first model was aligned before tuning, because one with sequence append cannot be.",
    ),
    PaperTable(
        "Table 6: share of views masked",
        {
            "masked-25": ("25 %", 58.9, 56.1, 57.5),
            "default": ("50 %", *FULL),
            "masked-75": ("75 %", 59.6, 56.7, 58.1),
        },
    ),
    PaperTable(
        "Table 7: camera embedding",
        {"plucker": ("Plücker", 59.9, 55.4, 57.6), "default": ("PRoPE", *FULL)},
    ),
)


def average_kinds(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Average question types into `COLUMNS`, each task of VSI-Bench alike; see `average_tasks`."""
    tasks = average_tasks(means, counts)
    overall = tasks.pop("overall")
    numbers, choices = ([tasks[task] for task in tasks if (task in NUMBER_TYPES) == is_number] for is_number in (1, 0))
    return {"numerical": mean(numbers), "choice": mean(choices), "average": overall}


def collect_scores(folders: Sequence[Path]) -> SceneScores:
    """Pool the answers of some runs by room.

    Args:
        folders (`Sequence[Path]`): Their reports.

    Raises:
        ValueError: If a folder has no report.
    """
    answers = [answer for folder in folders for answer in read_answers(folder).values()]
    return SceneScores.collect(*([answer[key] for answer in answers] for key in ("scene_id", "group", "score")))


def check_comparable(folders: Sequence[Path]) -> dict[str, Any]:
    """Read the report of the first run, and refuse runs on other questions.

    Raises:
        ValueError: If a folder has no report, or one with another benchmark, protocol or data.
    """
    first, *others = map(read_report, folders)
    for folder, other in zip(folders[1:], others, strict=True):
        for name in COMPARABLE:
            given, expected = other["provenance"].get(name), first["provenance"].get(name)
            if given != expected:
                raise ValueError(
                    f"The `{name}` of `{folder}` is `{given}`, but that of `{folders[0]}` is `{expected}`: ask all "
                    "variants the same questions."
                )
    return first


def format_ablations(world: Path, seeds: Sequence[int]) -> str:
    """Write all tables as Markdown, in percent.

    Args:
        world (`Path`): Folder of a world with ablations.
        seeds (`Sequence[int]`): Seeds that are pooled.

    Raises:
        ValueError: If the report of a variant is missing, or of other questions.
    """
    names = dict.fromkeys(name for table in TABLES for name in table.rows)
    folders = {name: [world / score_of(name, seed) for seed in seeds] for name in names}
    report = check_comparable([folder for each in folders.values() for folder in each])
    cells = {name: _cells(each) for name, each in folders.items()}
    questions, rooms = counted(report["num_questions"], "question"), counted(report["num_scenes"], "room")
    parts = [
        "# The paper's ablations, in rooms",
        f"{questions} about {rooms}, {counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), as many steps for "
        f"each variant. Percent: means over the seeds, and {LEVEL * 100:.0f} % intervals over rooms, the answers of "
        "all seeds pooled. The paper's columns are those of its models on VSI-Bench.",
    ]
    intervals = [part for heading in COLUMNS.values() for part in (heading, "interval")]
    header = ["Variant", *intervals, "Avg. by seed", *(f"paper: {heading}" for heading in COLUMNS.values())]
    for table in TABLES:
        rows = [[label, *cells[name], *map(format_number, paper)] for name, (label, *paper) in table.rows.items()]
        parts += [f"## {table.title}", format_table(header, rows, num_words=1), *filter(None, [table.note])]
    return "\n\n".join(parts) + "\n"


def _cells(folders: Sequence[Path]) -> list[str]:
    """Scores and intervals of a variant, and its average with each seed."""
    scores = collect_scores(folders)
    values = average_kinds(scores.means(), scores.num_questions())
    intervals, _ = bootstrap_intervals(scores, average_kinds)
    pairs = [(format_percent(values[key]), format_interval(*(intervals[key] or (None, None)))) for key in COLUMNS]
    single = [collect_scores([folder]) for folder in folders]
    averages = [average_kinds(each.means(), each.num_questions())["average"] for each in single]
    return [*(cell for pair in pairs for cell in pair), ", ".join(map(format_percent, averages))]


def main(arguments: Sequence[str] | None = None):
    """Write the tables; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder of spa3r world --ablations")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, metavar="N", help="seeds of each variant")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    options = parser.parse_args(arguments)
    text = format_ablations(options.world, options.seeds)
    write_text(options.output, text)
    print(text)


if __name__ == "__main__":
    main()
