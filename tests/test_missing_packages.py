"""The base install: without the optional packages every help works, and what needs one names what to install."""

import json
import subprocess
import sys

import pytest
from two_processes import REPOSITORY

from spa3r.trainers.integrations.cli import VERBS

# Run in a process of its own, which has imported none of them yet.
PROGRAM = """
import contextlib, io, json, sys
for name in ("av", "flash_attn", "peft", "deepspeed", "trackio", "evaluate", "bitsandbytes", "torchvision",
             "starlette", "uvicorn", "pydantic", "prometheus_client", "gradio", "trimesh"):
    sys.modules[name] = None
from spa3r.trainers.integrations.cli import main
def ending(arguments):
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(arguments)
    except SystemExit as ended:
        return ended.code
print(json.dumps([ending(arguments) for arguments in json.load(sys.stdin)]))
"""
TUNE = ["sft", "--instructions", "nowhere", "--use_cpu", "true", "--bf16", "false", "--output_dir", "runs/nowhere"]
NANO = ["--model", str(REPOSITORY / "modeling_spa3r/nano/spa3r-nano")]
# Command lines, and what their sentence names.
USES = [
    ([*TUNE, "--use_peft", "true"], "spa3r[lora]"),
    ([*TUNE, "--report_to", "trackio"], "spa3r[tracking]"),
    ([*TUNE, "--deepspeed", "zero.json"], "spa3r[deepspeed]"),
    (["serve", *NANO], "spa3r[serve]"),
    (["inspect", *NANO, "--video", __file__], "extra `video`"),
    (["demo"], "extra `demo`"),
    (["export", "photos", "--output", "runs/nowhere"], "extra `demo`"),
]


@pytest.fixture(scope="module")
def endings():
    commands = [[verb, "--help"] for verb in VERBS] + [arguments for arguments, _ in USES]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(commands), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_every_help_works_without_the_optional_packages(endings):
    assert dict(zip(VERBS, endings, strict=False)) == dict.fromkeys(VERBS, endings[0]) and not endings[0]


@pytest.mark.parametrize("number", range(len(USES)), ids=[named for _, named in USES])
def test_an_option_whose_package_is_missing_names_what_to_install(endings, number):
    assert USES[number][1] in endings[len(VERBS) + number]
