"""`spa3r benchmark-scenes`: the list that pre-training leaves out."""

import json

from terminal import verb

from spa3r.data_scripts.common.exclusions import read_excluded
from spa3r.data_scripts.scenes import benchmark_scenes

main = verb("benchmark-scenes")


def test_the_scenes_of_benchmarks_are_listed_once_and_sorted(tmp_path):
    rows = [{"scene_name": scene} for scene in ("scene0012_00", "41069025", "scene0012_00")]
    (tmp_path / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    main(["--files", tmp_path / "test.jsonl", "--output", tmp_path / "new/list.txt"])
    assert (tmp_path / "new/list.txt").read_text() == "41069025\nscene0012_00\n"
    assert read_excluded([tmp_path / "new/list.txt"]) == {"41069025", "scene0012_00"}


def test_without_files_the_published_test_sets_are_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_scenes, "fetch_benchmark_scenes", lambda: frozenset(["scene0011_00"]))
    main(["--output", tmp_path / "list.txt"])
    assert (tmp_path / "list.txt").read_text() == "scene0011_00\n"
    assert "nyu-visionx/VSI-Bench" in capsys.readouterr().out
