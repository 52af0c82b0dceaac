"""The rehearsal of `make gpu` on a CPU, and that it survives what goes wrong."""

import argparse
import json

import pytest
import torch
from gpu import run
from gpu.job import Job
from gpu.parts import PARTS
from gpu.tables import table_of
from gpu.worker import run_part

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", PARTS)
def test_part_passes_on_a_cpu(tmp_path, name):
    result = run_part(name, Job(CPU, True, tmp_path / "noted.json"))

    assert result["status"] == "passed", result


def test_error_of_a_part_is_kept_with_what_it_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("gpu.figures_vggt.build_vggt", lambda job: job.note(views=3) or 1 / 0)

    result = run_part("vggt", Job(CPU, True, tmp_path / "noted.json"))

    assert result["status"] == "failed"
    assert result["figures"] == {"views": 3}
    assert "ZeroDivisionError" in result["error"]


class FakeWorker:
    """Runs nothing: `vggt` loses it, all else passes."""

    def __init__(self, options, folder):
        self.folder, self.alive, self.ready = folder, True, True

    def run(self, name, limit):
        self.alive = name != "vggt"
        status = "passed" if self.alive else "failed"
        return {"status": status, "figures": {}, "checks": []}

    def stop(self):
        self.alive = False


def options(file, **changes) -> argparse.Namespace:
    given = ["--device", "cpu", "--output", str(file), "--commit", "abc"]
    return argparse.Namespace(**(vars(run.parse_options(given)) | changes))


def statuses(file) -> dict[str, str]:
    return {name: part["status"] for name, part in json.loads(file.read_text())["parts"].items()}


def test_a_lost_worker_does_not_stop_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Worker", FakeWorker)

    run.run_parts(options(tmp_path / "gpu.json"))

    assert statuses(tmp_path / "gpu.json") == dict.fromkeys(PARTS, "passed") | {"vggt": "failed"}


def test_only_parts_that_did_not_finish_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Worker", FakeWorker)
    run.run_parts(options(tmp_path / "gpu.json", parts=["vggt", "latents"]))

    assert run.choose_parts(
        options(tmp_path / "gpu.json", parts=["latents", "vggt", "batches"]),
        json.loads((tmp_path / "gpu.json").read_text())["parts"],
    ) == ["batches", "vggt"]


def test_no_part_starts_that_cannot_end_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Worker", FakeWorker)
    short = [name for name, part in PARTS.items() if part.expected <= 10]

    run.run_parts(options(tmp_path / "gpu.json", minutes=11 / 60))

    assert list(statuses(tmp_path / "gpu.json")) == short


def test_tables_of_no_results_say_so():
    assert "Not run yet." in table_of(None)


def test_docs_show_the_tables_of_the_committed_results():
    results = json.loads((run.ROOT / "tests/benchmarks/results/gpu_h100.json").read_text())
    page = (run.ROOT / "docs/performance.md").read_text()

    _, *tables = table_of(results).split("\n\n")

    assert all(table in page for table in tables)
