"""How benchmarks are published on the Hub: names of files and columns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a benchmark is published.

    Args:
        title (`str`): Its name.
        files (`tuple[str, ...]`): Patterns of its files of questions; the first that is there counts.
        columns (`tuple[str, ...]`): What each question has.
        id_column (`str`, *optional*): Column of ids; by default questions are numbered from 0.
        images (`str`, *optional*): Column of images in Parquet files.
        sizes (`tuple[int, ...]`): Numbers of questions of the published sets, ascending.
        how (`str`): What to do where it is not there.
    """

    title: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    id_column: str | None
    images: str | None
    sizes: tuple[int, ...]
    how: str


DOWNLOAD = "hf download {} --repo-type dataset --local-dir ..."
VSI_COLUMNS = ("id", "dataset", "scene_name", "question_type", "question", "ground_truth", "options")
LAYOUTS = {
    "vsi-bench": Layout(
        "VSI-Bench",
        ("test.jsonl", "test-*.parquet"),
        VSI_COLUMNS,
        "id",
        None,
        (5130,),
        DOWNLOAD.format("nyu-visionx/VSI-Bench"),
    ),
    "cv-bench": Layout(
        "CV-Bench",
        ("test_[23]d.parquet", "test.parquet"),
        ("idx", "type", "task", "question", "choices", "answer", "prompt", "source"),
        "idx",
        "image",
        (2638,),
        DOWNLOAD.format("nyu-visionx/CV-Bench"),
    ),
    "spar-bench": Layout(
        "SPAR-Bench",
        ("data/test-*.parquet", "test-*.parquet"),
        ("id", "task", "question", "answer"),
        "id",
        "image",
        (1000, 7207),
        DOWNLOAD.format("jasonzhango/SPAR-Bench"),
    ),
    "viewspatial-bench": Layout(
        "ViewSpatial-Bench",
        ("ViewSpatial-Bench.json", "data/test-*.parquet", "test-*.parquet"),
        ("question_type", "question", "choices", "answer"),
        None,
        "images",
        (5712,),
        DOWNLOAD.format("lidingm/ViewSpatial-Bench"),
    ),
    "rooms": Layout(
        "rooms",
        ("test.jsonl",),
        VSI_COLUMNS,
        "id",
        None,
        (),
        "spa3r room-questions --format benchmark --rooms ... --output ...",
    ),
}
