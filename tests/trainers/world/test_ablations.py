"""The ablations of the nano world: what their stages run, and the tables of their scores."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmark_runs import PROTOCOL, RUN, make_predictions, make_questions, write_without_chart
from refusals import refused
from verb_parsers import parser_of

from spa3r.data_scripts.benchmarks.vsi_bench import NUMBER_TYPES
from spa3r.trainers.benchmark.report import read_report
from spa3r.trainers.pretraining.arguments import parse_arguments
from spa3r.trainers.pretraining.pretrain import build_config
from spa3r.trainers.world import deeper, world
from spa3r.trainers.world.ablation_table import TABLES, main
from spa3r.trainers.world.ablations import SPA3R, VARIANTS, list_ablations, score_of
from spa3r.trainers.world.stages import list_stages

WORLD = Path("a world")
*STAGES, TABLE = list_ablations(WORLD, [1])
BY_NAME = {stage.name: stage for stage in [*list_stages(WORLD), *STAGES]}


def parsed(name):
    """The options of a stage, those of its recipe included."""
    module, *arguments = BY_NAME[name].command
    if module == deeper.__name__:
        return vars(deeper.parse_options(arguments))
    parser, rest = parser_of(*arguments)
    return vars(parser.parse_args(rest))


@pytest.mark.parametrize("seeds", [[0], [1, 2], [0, 1]])
def test_each_stage_follows_what_it_needs(seeds):
    stages = [*list_stages(WORLD), *list_ablations(WORLD, seeds)]
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert all(set(stage.needs) <= set(names[:index]) for index, stage in enumerate(stages))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_command_parses_and_reads_what_stages_that_it_needs_have_written(stage):
    options = parsed(stage.name)
    values = [options[name] for name in ("model", "model_name_or_path", "scene_latents", "spa3r") if options.get(name)]
    assert {Path(value).relative_to(WORLD).parts[0] for value in values} <= set(stage.needs)


# A stage of the world, the one that replaces it with another seed, and options in which they differ.
SAME_BUT_FOR_THE_SEED = [
    ("spa3r", "spa3r-default-1", {"seed", "output_dir"}),
    ("spa3-vlm", "spa3-vlm-default-1", {"seed", "output", "spa3r"}),
    ("scenes", "scenes-default-1", {"model", "output"}),
    ("aligned", "aligned-default-1", {"seed", "output_dir", "model_name_or_path"}),
    ("tuned", "tuned-default-1", {"seed", "output_dir", "model_name_or_path", "scene_latents"}),
    ("aligned-2d", "aligned-none-1", {"seed", "output_dir"}),
    ("deeper-2d", "deeper-none-1", {"seed", "model", "output"}),
    ("tuned-2d", "tuned-none-1", {"seed", "output_dir", "model_name_or_path"}),
    ("score-tuned", "score-default-1", {"model", "output", "label", "beside"}),
    ("score-tuned-2d", "score-none-1", {"model", "output", "label"}),
]


@pytest.mark.parametrize(("own", "other", "expected"), SAME_BUT_FOR_THE_SEED)
def test_stages_of_the_world_serve_for_seed_0(own, other, expected):
    first, second = parsed(own), parsed(other)
    assert {name for name in first | second if first.get(name) != second.get(name)} == expected
    assert (first.get("seed"), second.get("seed")) in [(0, 1), (None, None)]


def settings_of(name):
    """Architecture and data of a Spa3R."""
    model, data, _ = parse_arguments(list(BY_NAME[f"spa3r-{name}-1"].command[2:]))
    return build_config(model).to_dict() | vars(data)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("geometry", {"targets": ["geometry"], "teachers": {}}),
        ("semantic", {"targets": ["semantic"]}),
        ("masked-25", {"context_ratio": 0.75}),
        ("masked-75", {"context_ratio": 0.25}),
        ("plucker", {"camera_embedding": "plucker"}),
    ],
)
def test_a_spa3r_differs_from_the_default_in_what_it_is_named_for(name, expected):
    default, changed = settings_of("default"), settings_of(name)
    assert {key: value for key, value in changed.items() if default[key] != value} == expected


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("spa3-vlm-vggt", "spatial_representation", "vggt"),
        ("spa3-vlm-append-1", "fusion", "append"),
        ("deeper-unaligned-1", "model", "a world/spa3-vlm-default-1"),
        ("tuned-append-1", "scene_latents", "a world/scenes-default-1"),
        ("tuned-vggt-1", "scene_latents", "a world/scenes-vggt"),
    ],
)
def test_the_other_variants_start_from_models_of_their_own(name, option, expected):
    assert parsed(name)[option] == expected


def test_every_variant_is_in_a_table_and_every_spa3r_in_a_variant():
    assert {name for table in TABLES for name in table.rows} == VARIANTS.keys()
    assert {variant.representation for variant in VARIANTS.values()} == {*SPA3R, "vggt"}


def test_seeds_without_ablations_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        world.main(["--output", str(tmp_path / "world"), "--seeds", "3"])
    assert "--seeds" in capsys.readouterr().err and not (tmp_path / "world").exists()


def test_the_command_adds_the_ablations_to_the_stages_of_the_world(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(world, "run_stages", lambda stages, *rest: ran.extend(stages))
    monkeypatch.setattr(world, "format_results", lambda *arguments: "")
    world.main(["--output", str(tmp_path), "--ablations", "--seeds", "3"])
    assert ran == [*list_stages(tmp_path), *list_ablations(tmp_path, [3])]


QUESTIONS = make_questions(120, num_scenes=12)


def write_runs(folder, seeds):
    """Runs of all variants; those of a seed give the same answers."""
    for seed in seeds:
        first, *others = (folder / score_of(name, seed) for name in VARIANTS)
        write_without_chart(first, RUN, QUESTIONS, make_predictions(QUESTIONS, seed), PROTOCOL, [], {})
        for other in others:
            shutil.copytree(first, other)


def make_rows(folder):
    """Write the tables of all runs with the command of the stage, and read the cells by table and label."""
    *_, stage = list_ablations(folder, [0, 1])
    main(stage.command[1:])
    rows, table = {}, ""
    for line in (folder / stage.table).read_text().splitlines():
        table = line[3:10] if line.startswith("## ") else table
        if line.startswith("| "):
            label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[table, label] = cells
    return rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs of two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder, (0, 1))
    return folder


@pytest.fixture(scope="module")
def rows(runs):
    return make_rows(runs)


def percent(values):
    return f"{100 * np.mean(values):.1f}"


def test_scores_are_means_over_seeds_of_means_over_tasks(runs, rows):
    cells = rows["Table 7", "PRoPE"]
    columns = [read_report(runs / score_of("default", seed))["columns"] for seed in (0, 1)]
    numbers = [row["value"] for each in columns for row in each if row["key"] in NUMBER_TYPES]
    choices = [row["value"] for each in columns for row in each if row["key"] not in ("overall", *NUMBER_TYPES)]
    averages = [each[0]["value"] for each in columns]
    assert [cells[0], cells[2], cells[4]] == [percent(numbers), percent(choices), percent(averages)]
    assert cells[6] == ", ".join(map(percent, averages))


def test_the_papers_figures_stand_beside(rows):
    assert rows["Table 3", "VGGT features"][-3:] == ["60.5", "49.5", "55.1"]
    assert [table for table, label in rows if label == "none"] == ["Table 3", "Table 5"]


def test_equal_seeds_leave_the_interval_as_it_is(runs, tmp_path):
    for name in VARIANTS:
        for seed in (0, 1):
            shutil.copytree(runs / score_of(name, 0), tmp_path / score_of(name, seed))
    overall = read_report(runs / score_of("default", 0))["columns"][0]
    cells = make_rows(tmp_path)["Table 6", "50 %"]
    assert cells[5] == f"{100 * overall['low']:.1f}–{100 * overall['high']:.1f}"


def test_runs_on_other_questions_are_refused(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    other = tmp_path / "runs" / score_of("plucker", 1)
    write_without_chart(
        other, RUN | {"data_fingerprint": "xyz"}, QUESTIONS, make_predictions(QUESTIONS), PROTOCOL, [], {}
    )
    with refused("`data_fingerprint`", "`xyz`", "`abc`", str(other)):
        make_rows(tmp_path / "runs")
