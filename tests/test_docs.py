"""What the documentation shows exists: commands parse, code finds its names, links and paths lead somewhere."""

import argparse
import ast
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from verb_parsers import parser_of

import spa3r
from spa3r.modeling_spa3r.checkpoints.cards import PUBLISHED
from spa3r.trainers.integrations.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
}
NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
FOLDERS = ("configuration", "modeling_spa3r", "trainers", "data_scripts")
LAUNCHERS = {
    "pretrain.py": "pretrain",
    "sft.py": "sft",
    "grpo.py": "grpo",
    "benchmark.py": "benchmark",
    "ask.py": "ask",
}
# Options in prose that belong to accelerate and to the scripts of tests/benchmarks.
OPTIONS_OF_OTHERS = {"--config_file", "--num_processes", "--preset", "--gpus", "--views"}
PATH = re.compile(r"`((?:configuration|modeling_spa3r|trainers|data_scripts|tests|docs)/[\w./-]+)`")


def options_in(parser: argparse.ArgumentParser) -> set[str]:
    """Options of a parser and its subcommands."""
    options = {option for action in parser._actions for option in action.option_strings}
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return options.union(*(options_in(inner) for group in groups for inner in group.choices.values()))


@cache
def options_of(verb: str) -> set[str]:
    """Options of a verb."""
    return options_in(parser_of(*verb.split())[0])


def blocks(language: str, pages=PAGES) -> list:
    """Fenced blocks of a language, as test parameters."""
    found = []
    for page, text in pages.items():
        for number, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)):
            found.append(pytest.param(block, id=f"{page}-{number}"))
    return found


def expanded(makefile: str) -> str:
    """The text of a Makefile with its variables replaced by their values."""
    values = dict(re.findall(r"^(\w+) [:?]= (.*)$", makefile, re.MULTILINE))
    while any(f"$({name})" in makefile for name in values):
        makefile = re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), makefile)
    return makefile


def commands() -> list:
    """Arguments of every `spa3r` in shell blocks and the Makefile, started by itself or by `accelerate launch`."""
    sources = [(param.id, param.values[0]) for param in blocks("bash")]
    makefile = expanded((ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)/", "").replace("\\\n", " "))
    found = {}
    for source, text in [*sources, ("Makefile", makefile)]:
        for line in text.replace("\\\n", " ").splitlines():
            if not re.match(r"\s*(spa3r|accelerate launch) ", line):
                continue
            words = shlex.split(line, comments=True)
            if words[0] == "accelerate" and "-m" in words:
                words = words[words.index("-m") + 1 :]
            elif words[0] == "accelerate":
                launcher = next(word for word in words if word in LAUNCHERS)
                words = ["spa3r", LAUNCHERS[launcher], *words[words.index(launcher) + 1 :]]
            found[f"{source}-{len(found)}"] = words[1:]
    return [pytest.param(words, id=name) for name, words in found.items() if words not in (["--help"], ["VERB"])]


@pytest.mark.parametrize("arguments", commands())
def test_every_command_parses(arguments):
    parser, rest = parser_of(*arguments)
    assert parser.parse_known_args(rest)[1] == []


def test_every_option_in_prose_is_one_of_a_verb():
    verbs = ["convert-data spar" if verb == "convert-data" else verb for verb in VERBS]
    known = set().union(*map(options_of, verbs))
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`((?:spa3r |--)[^`]+)`", prose):
            verb = re.match(r"spa3r ([\w-]+) -", code)
            options = set(re.findall(r"(?<!\S)(--[\w-]+)", code))
            unknown = options - (options_of(verb[1]) if verb else known | OPTIONS_OF_OTHERS)
            assert not unknown, f"{page} shows `{code}`, but no parser has {sorted(unknown)}."


def test_every_verb_is_shown():
    headings = re.findall(r"^## (\S+)$", PAGES["docs/commands.md"], re.MULTILINE)
    assert headings == list(VERBS)


def test_every_public_name_is_in_the_reference():
    documented = re.findall(r"auto(?:class|function):: spa3r\.(\w+)$", PAGES["docs/api.md"], re.MULTILINE)
    assert sorted(documented) == sorted(spa3r.__all__)


def test_every_folder_of_the_package_is_in_the_design():
    folders = {file.parent for name in FOLDERS for file in (ROOT / name).glob("*/*.py")}
    shown = set(re.findall(r"^ *([a-z_0-9]+)/ ", PAGES["docs/design.md"], re.MULTILINE))
    assert {*FOLDERS, *(folder.name for folder in folders)} <= shown


def check_python(source: str):
    """Compile code, and find each name that it takes from this package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "spa3r":
            module = importlib.import_module(node.module)
            assert {alias.name for alias in node.names} <= set(dir(module)), node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "spa3r":
            assert hasattr(spa3r, node.attr)


@pytest.mark.parametrize("source", blocks("python"))
def test_python_blocks_compile_and_find_their_names(source):
    check_python(source)


def test_the_readme_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (source,) = (param.values[0] for param in blocks("python", {"README.md": PAGES["README.md"]}))
    exec(compile(source, "README.md", "exec"), {})
    assert "(1, 128, 128)" in str(capsys.readouterr().out).replace("torch.Size([", "(").replace("])", ")")


@pytest.mark.parametrize("page", ["README.md", "docs/checkpoints.md"])
def test_published_weights_are_listed(page):
    assert all(re.search(rf"{name}\b.* \| .* \|", PAGES[page]) for name, _ in PUBLISHED.values())


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r'(?:\]\(|src=")([^)"\s]+)[)"]', PAGES[page]):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to `{target}`."
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page} links to `{target}`."


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_prose_exist(page):
    missing = [path for path in PATH.findall(PAGES[page]) if not (ROOT / path).exists()]
    assert not missing, f"{page} names {missing}."


@pytest.mark.skipif(importlib.util.find_spec("myst_parser") is None, reason="needs the extra `docs`")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "docs", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "api.html").is_file()


def notebook_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    scope = {"display": print}
    for cell in notebook_cells():
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), scope)


def test_the_notebook_is_kept_without_outputs():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in notebook_cells())
