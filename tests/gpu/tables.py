"""What `make gpu` prints: the state of each part, and the Markdown tables of docs/performance.md."""

from collections.abc import Callable

from gpu.parts import PARTS

EMPTY = ""


def print_summary(results: dict):
    """A line for each part, and one for each check that does not hold."""
    for name in PARTS:
        result = results["parts"].get(name)
        if result is None:
            print(f"{name:22} not run")
            continue
        held = sum(check["holds"] for check in result["checks"])
        print(f"{name:22} {result['status']:7} {result['seconds']:6.1f} s  {held} of {len(result['checks'])} checks")
        for check in result["checks"]:
            if not check["holds"]:
                said = f"{check['value']:.3g}, allowed {check['limit']:.3g}" if check["value"] is not None else ""
                print(f"    {check['what']}: {said or last_line(check['error'])}")
        if result.get("error"):
            print(f"    {last_line(result['error'])}")


def last_line(text: str) -> str:
    """Of a traceback: what went wrong."""
    return (text.strip().splitlines() or [""])[-1][:300]


def table_of(results: dict | None) -> str:
    """The tables in Markdown; what was not measured is an empty cell."""
    parts = results["parts"] if results else {}
    figures = {name: parts.get(name, {}).get("figures", {}) for name in PARTS}
    machine = (results or {}).get("machine", {})
    commits = sorted({str(part["commit"]) for part in parts.values() if part.get("commit")})
    said = ", ".join(f"{name} {machine[name]}" for name in ("device", "torch", "transformers") if name in machine)
    head = f"{said}; commit {', '.join(commits)}" if said else "Not run yet."
    tables = [head] + [make(figures) for make in (_vggt, _latents, _pretraining, _answers, _tuning)]
    return "\n\n".join(tables)


def _cell(value, form: str = ".3g", factor: float = 1) -> str:
    return EMPTY if value is None else format(factor * value, form)


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _find(rows: list[dict], key: str, value) -> dict:
    return next((row for row in rows if row[key] == value), {})


def _vggt(figures: dict) -> str:
    measured, compiled = figures["vggt"].get("rows", []), figures["vggt_compiled"]
    head = ["VGGT-1B, 24 views of 518 x 392, bfloat16", "Time", "Share of matmul peak", "12 context views", "Memory"]

    def line(name: str, row: dict) -> list[str]:
        time, half = _cell(row.get("seconds"), ".3f"), _cell(row.get("seconds_half_context"), ".3f")
        return [name, time, _cell(row.get("share_of_peak"), ".0%"), half, _cell(row.get("peak_gb"), ".1f")]

    names = ("torch's choice", "flash", "cudnn", "efficient")
    rows = [line(name, _find(measured, "attention", name)) for name in names]
    return _rows(head, [*rows, line("compiled blocks", compiled)])


def _latents(figures: dict) -> str:
    measured = figures["latents"].get("rows", [])
    numbers = [8, 16, 32, 64, 128]

    def line(name: str, key: str, form: str) -> list[str]:
        return [name] + [_cell(_find(measured, "views", number).get(key), form) for number in numbers]

    head = ["Latents of", *(f"{number} views" for number in numbers)]
    return _rows(head, [line("time, s", "seconds", ".3g"), line("memory above the weights, GB", "peak_gb", ".3g")])


def _pretraining(figures: dict) -> str:
    measured = figures["pretraining"].get("rows", [])
    names = ["VGGT", "camera head", "depth head", "DINO", "encoder", "decoder", "heads and losses"]
    names += ["backward", "optimizer", "step"]
    scenes = ("2 scenes of 12 views", "4 scenes of 6 views")
    found = [_find(measured, "scenes", 2), _find(measured, "scenes", 4)]
    rows = [[name, *(_cell(row.get("seconds", {}).get(name), ".3f") for row in found)] for name in names]
    rows.append(["images a second", *(_cell(row.get("images_per_second"), ".1f") for row in found)])
    rows.append(["memory above the weights, GB", *(_cell(row.get("peak_gb"), ".1f") for row in found)])
    return _rows(["A step of pre-training, s", *scenes], rows)


def _answers(figures: dict) -> str:
    one, many, compiled = figures["generate"], figures["questions"], figures["compiled_generate"]
    rates = figures["benchmark"].get("questions_per_second", {})
    lines: list[tuple[str, object, str]] = [
        ("time to the first token, s", one.get("seconds_to_first_token"), ".3f"),
        ("its part in encoding the scene, s", one.get("seconds_to_encode_scene"), ".3f"),
        ("tokens a second", one.get("tokens_per_second"), ".1f"),
        ("tokens a second, compiled, static cache", compiled.get("tokens_per_second"), ".1f"),
        ("18 questions, fresh calls, s", many.get("seconds_fresh"), ".2f"),
        ("18 questions, a session, one by one, s", many.get("seconds_one_by_one"), ".2f"),
        ("18 questions, a session, one batch, s", many.get("seconds_batch"), ".2f"),
        ("questions of a benchmark a second, one by one", rates.get("one by one"), ".2f"),
        ("questions of a benchmark a second, in batches", rates.get("in batches"), ".2f"),
        ("the same, one question about each image, one by one", rates.get("one a scene, one by one"), ".2f"),
        ("the same, one question about each image, in batches", rates.get("one a scene, in batches"), ".2f"),
    ]
    return _rows(["Spa3-VLM-4B, 8 images, bfloat16", "Measured"], [[name, _cell(*rest)] for name, *rest in lines])


def _tuning(figures: dict) -> str:
    ways = {"LoRA": figures["sft_lora"], "whole language model": figures["sft_full"]}
    columns: list[tuple[str, Callable]] = [
        ("Time, s", lambda row: _cell(row.get("seconds"), ".3f")),
        ("Tokens a second", lambda row: _cell(row.get("tokens_per_second"), ",.0f")),
        ("Peak memory, GB", lambda row: _cell(row.get("peak_gb"), ".1f")),
    ]
    head = ["A step of tuning the 4b, a record of 8 images", *(name for name, _ in columns)]
    return _rows(head, [[name, *(make(row) for _, make in columns)] for name, row in ways.items()])
