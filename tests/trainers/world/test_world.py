"""`spa3r world`: the order of its stages, what it skips and refuses, and a tiny world made whole."""

import json
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module

import pytest
from refusals import refused
from transformers import AutoModelForImageTextToText

from spa3r.trainers.integrations import cli
from spa3r.trainers.runs.recipes import RECIPES
from spa3r.trainers.world import world
from spa3r.trainers.world.stages import Stage, list_stages
from spa3r.trainers.world.world import format_results, format_times, is_done, log_of, minutes_left, run_stages

ROOMS = Stage("rooms", "draw", 10, ("spa3r", "rooms"))
TEACH, ASK = Stage("teach", "teach", 20, ("spa3r", "teach"), ("rooms",)), Stage("ask", "ask", 5, ("x",), ("rooms",))
STAGES = [ROOMS, TEACH, ASK]


@dataclass
class Run:
    """A stage that ends after some looks at it."""

    looks: int = 1
    status: int = 0
    is_terminated: bool = False

    def poll(self):
        self.looks -= 1
        return None if self.looks > 0 else self.status

    def terminate(self):
        self.is_terminated = True

    def wait(self):
        pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "SECONDS_BETWEEN_LOOKS", 0)
    for name in ("logs", "done"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_stage_follows_what_it_needs(device, tmp_path):
    stages = list_stages(tmp_path, device)
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert all(set(stage.needs) <= set(names[:index]) for index, stage in enumerate(stages))


def test_paths_with_spaces_stay_whole(tmp_path):
    commands = [stage.command for stage in list_stages(tmp_path / "a world")]
    assert all(any("a world/" in part for part in command) for command in commands)


def test_stages_that_need_each_other_run_in_turn_and_others_together(folder):
    started, together = [], []

    def start(stage, log):
        started.append(stage.name)
        together.append([name for name, run in runs.items() if run.looks > 0])
        return runs.setdefault(stage.name, Run(looks=2))

    runs = {}
    run_stages(STAGES, folder, 2, start)
    assert started == ["rooms", "teach", "ask"]
    assert together == [[], [], ["teach"]]


def test_a_world_goes_on_where_it_stopped(folder):
    started = []

    def start(stage, log):
        started.append(stage.name)
        return Run(status=int(started == ["rooms", "teach"]))

    with refused("`teach`", "status 1", "logs/teach.log"):
        run_stages(STAGES, folder, 1, start)
    run_stages(STAGES, folder, 1, start)
    assert started == ["rooms", "teach", "teach", "ask"]


def test_stages_that_run_beside_one_that_fails_are_ended(folder):
    runs = {"rooms": Run(), "teach": Run(status=1), "ask": Run(looks=9)}
    with refused("`teach`"):
        run_stages(STAGES, folder, 2, lambda stage, log: runs[stage.name])
    assert runs["ask"].is_terminated and not is_done(ASK, folder)


def test_a_stage_that_ends_beside_one_that_fails_is_done(folder):
    runs = {"rooms": Run(), "teach": Run(status=1), "ask": Run()}
    with refused("`teach`"):
        run_stages(STAGES, folder, 2, lambda stage, log: runs[stage.name])
    assert is_done(ASK, folder)


def test_a_stage_whose_complete_result_stands_there_is_done(folder):
    stage = Stage("qwen", "make", 1, ("x",), result="qwen")
    assert not is_done(stage, folder)
    (folder / "qwen").mkdir()
    assert is_done(stage, folder)


def test_the_end_of_the_log_of_a_failed_stage_is_told(folder):
    log_of(ROOMS, folder).write_text("line\n" * 9 + "spa3r rooms: there is no room on the disk.\n")
    with refused("there is no room on the disk"):
        run_stages([ROOMS], folder, 1, lambda stage, log: Run(status=1))


def test_a_stage_that_another_command_made_is_refused(folder):
    run_stages([ROOMS], folder, 1, lambda stage, log: Run())
    with refused("`rooms`", "--seed 3", str(folder / "done" / "rooms.json")):
        is_done(Stage("rooms", "draw", 10, ("spa3r", "rooms", "--seed", "3")), folder)


def test_the_time_left_is_that_of_the_longest_chain_or_of_all_cores():
    assert minutes_left(STAGES, set(), jobs=2) == 30
    assert minutes_left(STAGES, set(), jobs=1) == 35
    assert minutes_left(STAGES, {"rooms"}, jobs=2) == 20
    assert minutes_left(STAGES, {"rooms", "teach", "ask"}, jobs=2) == 0


def run_here(stage, log):
    """Run a stage in this process, so that libraries are imported once."""
    module, *arguments = stage.command
    with log.open("w") as file, redirect_stdout(file):
        (cli if module == "spa3r" else import_module(module)).main(arguments)
    return Run()


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory):
    """A whole world of two steps."""
    folder = tmp_path_factory.mktemp("tiny") / "world"
    for name in ("logs", "done"):
        (folder / name).mkdir(parents=True)
    run_stages(list_stages(folder, smoke=True), folder, 1, run_here)
    return folder


def test_a_tiny_world_is_made_from_nothing(tiny_world):
    report = json.loads((tiny_world / "score-tuned" / "report.json").read_text())
    assert [row["label"] for row in report["references"]] == ["text only", "2-D only"]
    model = AutoModelForImageTextToText.from_pretrained(tiny_world / "nano" / "spa3-vlm-nano")
    assert model.config.fusion == "cross_attention"
    assert "rotation_median" in (tiny_world / "logs" / "geometry.log").read_text()


def test_its_tables_are_shown(tiny_world):
    stages = list_stages(tiny_world, smoke=True)
    results = format_results(stages, tiny_world)
    headings = [line[3:] for line in results.splitlines() if line[3:] in {stage.name for stage in stages}]
    assert headings == [
        *("geometry", "semantic", "vision", "spa3r-report", "aligned", "aligned-2d", "score-tuned"),
        *("compare-score-tuned-text", "compare-score-tuned-2d"),
    ]
    assert format_times(stages, tiny_world).count("\n| ") == len(stages)
    assert "| – | – |" not in format_times(stages, tiny_world)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_what_a_recipe_reads_from_the_world_is_written_by_a_stage(recipe, tmp_path):
    lines = (RECIPES / f"{recipe}.yaml").read_text().splitlines()
    read = [line for line in lines if not line.startswith(("#", "output_dir"))]
    folders = set(re.findall(r"runs/world/([\w-]+)", "\n".join(read)))
    assert folders <= {stage.name for stage in list_stages(tmp_path)}
