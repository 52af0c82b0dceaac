"""Checkpoints that carry their code to machines without this package; pushing and loading them."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import pytest
import transformers
from hub_server import Hub
from packaging.requirements import Requirement
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_spa3_vlm import photo, prepare, tiny_model, tiny_processor, user

from spa3r import Spa3VLMForConditionalGeneration, Spa3VLMProcessor
from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.cards import parts_of, spa3_vlm_card
from spa3r.modeling_spa3r.checkpoints.self_contained import add_code, push_self_contained, save_self_contained

CLASSES = {
    "AutoConfig": "Spa3VLMConfig",
    "AutoModel": "Spa3VLMModel",
    "AutoModelForImageTextToText": "Spa3VLMForConditionalGeneration",
    "AutoModelForMultimodalLM": "Spa3VLMForConditionalGeneration",
    "AutoProcessor": "Spa3VLMProcessor",
    "AutoImageProcessor": "Spa3VLMImageProcessor",
}
ABSENT = ("spa3r", "av", "torchvision", "accelerate", "datasets")

# What processes without the package run: `report` goes to the file named first, as JSON.
CLEAN_HEAD = """
import importlib.util, json, re, sys
import torch, transformers

report = {}

def refusal(auto_class, name, **options):
    try:
        return f"loaded {type(getattr(transformers, auto_class).from_pretrained(name, **options)).__name__}"
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"

def run_card(text):
    scope = {}
    exec(re.findall(r"```python\\n(.*?)```", text, re.DOTALL)[1], scope)
    return scope
"""
CLEAN_FOLDER = """
_, output, folder, plain, without_adapter, again = sys.argv
report["present"] = [name for name in ABSENT if importlib.util.find_spec(name)]
report["untrusted"] = {name: refusal(name, folder) for name in CLASSES}
report["distrusted"] = {name: refusal(name, folder, trust_remote_code=False) for name in CLASSES}
report["plain"] = {name: refusal(name, plain) for name in CLASSES}
report["plain and trusted"] = {name: refusal(name, plain, trust_remote_code=True) for name in CLASSES}

report["loaded"] = {}
for name in CLASSES:
    loaded = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
    report["loaded"][name] = [type(loaded).__name__, type(loaded).__module__.split(".")[0]]
report["keys"] = {}
for name in ("AutoModel", "AutoModelForImageTextToText"):
    auto_class = getattr(transformers, name)
    _, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    report["keys"][name] = sorted(info["missing_keys"] | info["unexpected_keys"])
scope = run_card(open(f"{folder}/README.md").read())
model, processor, inputs = scope["model"], scope["processor"], scope["inputs"]
report["tokens"] = scope["tokens"].tolist()
pipe = transformers.pipeline("image-text-to-text", model=folder, trust_remote_code=True)
chat = [{"role": "user", "content": scope["content"]}]
report["pipeline"] = pipe(text=chat, max_new_tokens=16, return_full_text=False)[0]["generated_text"]
try:
    processor(text="<|video_pad|>", videos=["room.mp4"])
except ImportError as error:
    report["video"] = str(error)
model.save_pretrained(again)
processor.save_pretrained(again)
report["again"] = {name: refusal(name, again, trust_remote_code=True) for name in CLASSES}

auto_class = transformers.AutoModelForImageTextToText
silent, info = auto_class.from_pretrained(without_adapter, trust_remote_code=True, output_loading_info=True)
report["missing"] = sorted(info["missing_keys"])
report["adapter"] = silent.model.fusion.adapter.fc2.weight.abs().max().item()
report["norm"] = silent.model.fusion.norm.weight.unique().tolist()
base = transformers.Qwen2_5_VLForConditionalGeneration._from_config(silent.config.vlm_config).eval()
base.model.load_state_dict(silent.model.vlm.state_dict())
base.lm_head.load_state_dict(silent.lm_head.state_dict())
spatial = ("pixel_values_geometry", "geometry_sizes", "num_views")
with torch.no_grad():
    expected = base(**{name: tensor for name, tensor in inputs.items() if name not in spatial}).logits
    report["logits equal"] = torch.equal(silent(**inputs).logits, expected)
json.dump(report, open(output, "w"))
"""
CLEAN_HUB = """
from huggingface_hub import hf_hub_download

_, output = sys.argv
scope = run_card(open(hf_hub_download("user/carried", "README.md")).read())
report["tokens"] = scope["tokens"].tolist()
json.dump(report, open(output, "w"))
"""
PUSH = """
import sys
from huggingface_hub import HfApi
from spa3r.modeling_spa3r.checkpoints.self_contained import push_self_contained

# What a larger checkpoint of the same name has left there.
HfApi().create_repo("user/carried")
for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id="user/carried")
push_self_contained(sys.argv[1], "user/carried", commit_message="The whole")
"""
WITH_PACKAGE = """
import json, re, sys

example, _ = re.findall(r"```python\\n(.*?)```", open(f"{sys.argv[2]}/README.md").read(), re.DOTALL)
exec(example)
modules = [type(part).__module__ for part in (model, processor)]
json.dump([*modules, tokens.tolist()], open(sys.argv[1], "w"))
"""


@cache
def required() -> list[metadata.Distribution]:
    """The installed distributions of torch, transformers and pillow, and all that they require."""
    found, waiting = {}, ["torch", "transformers", "pillow"]
    while waiting:
        distribution = metadata.distribution(waiting.pop())
        if distribution.name not in found:
            found[distribution.name] = distribution
            others = map(Requirement, distribution.requires or [])
            waiting += [other.name for other in others if not other.marker or other.marker.evaluate({"extra": ""})]
    return list(found.values())


@pytest.fixture(scope="module")
def run_clean(tmp_path_factory):
    """Runs a script where torch, transformers, pillow and what they require are all that is installed."""
    site = tmp_path_factory.mktemp("site")
    for distribution in required():
        for name in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))

    def run(script: str, photos: Path, *arguments: object, **environment: str) -> dict:
        output = tmp_path_factory.mktemp("clean") / "report.json"
        script = f"{CLEAN_HEAD}\nCLASSES, ABSENT = {list(CLASSES)}, {ABSENT}\n{script}"
        process = subprocess.run(
            # -S: nothing but PYTHONPATH and the standard library; -P: not the directory it runs in.
            [sys.executable, "-S", "-P", "-c", script, output, *map(str, arguments)],
            env=os.environ
            | {"PYTHONPATH": str(site), "HF_HOME": str(output.parent / "home"), "HF_HUB_OFFLINE": "1"}
            | environment,
            cwd=photos,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        return json.loads(output.read_text())

    return run


@dataclass
class Checkpoint:
    """A self-contained checkpoint, and what its model answers to the question on its card."""

    model: Spa3VLMForConditionalGeneration
    processor: Spa3VLMProcessor
    folder: Path
    photos: Path
    tokens: list
    answer: str

    def save_as(self, name: str, card_name: str | None = None) -> Path:
        """Save it again beside the photos, with a card that names another place to load it from."""
        folder = self.photos / name
        config = self.model.config
        card = spa3_vlm_card(card_name or str(folder), config, dict.fromkeys(parts_of(config)))
        save_self_contained(self.model, self.processor, folder, card)
        return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    home = tmp_path_factory.mktemp("checkpoint")
    model, processor = tiny_model(), tiny_processor()
    photo(1).save(home / "door.jpg")
    photo(2).save(home / "sofa.jpg")
    images = [{"type": "image", "path": str(home / name)} for name in ("door.jpg", "sofa.jpg")]
    inputs = prepare(processor, user(*images, "How many chairs are in the room?"))
    tokens = model.generate(**inputs, max_new_tokens=16)
    answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    checkpoint = Checkpoint(model, processor, home / "toy-0.1", home, tokens.tolist(), answer)
    checkpoint.save_as("toy-0.1")
    return checkpoint


@pytest.fixture(scope="module")
def plain(checkpoint) -> Path:
    """The same, saved by transformers alone."""
    folder = checkpoint.photos / "plain"
    checkpoint.model.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clean(checkpoint, plain, run_clean) -> dict:
    """What a process without the package makes of folders."""
    without_adapter = checkpoint.save_as("without_adapter")
    file = without_adapter / "model.safetensors"
    rest = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("model.fusion.")}
    save_file(rest, file, metadata={"format": "pt"})
    again = checkpoint.photos / "again"
    return run_clean(CLEAN_FOLDER, checkpoint.photos, checkpoint.folder, plain, without_adapter, again)


# The code beside the weights.


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Level and name of each imported module; an import in a `try` may fail."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((0, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.level, child.module
        elif not isinstance(child, ast.Try):
            yield from imports(child)


def test_a_carried_file_imports_only_files_beside_it_and_what_torch_transformers_and_pillow_bring(checkpoint):
    files = {path.stem: path for path in checkpoint.folder.glob("*.py")}
    installed = set(sys.stdlib_module_names)
    for distribution in required():
        installed |= {path.parts[0].removesuffix(".py") for path in distribution.files}
    for name, file in files.items():
        for level, module in imports(ast.parse(file.read_text())):
            assert level <= 1 and module.split(".")[0] in (files if level else installed), (name, module)


def test_a_carried_file_starts_with_its_package_version_and_licence(checkpoint):
    for file in checkpoint.folder.glob("*.py"):
        first = file.read_text().splitlines()[0]
        assert first.startswith("#") and f"spa3r {metadata.version('spa3r')}" in first and "Apache" in first


def test_the_folder_holds_only_the_model_its_processor_its_code_and_its_card(checkpoint, plain):
    names = {path.name for path in checkpoint.folder.iterdir() if path.suffix != ".py"}
    assert names == {path.name for path in plain.iterdir()} | {"README.md", "card.json"}


def test_adding_the_code_again_changes_nothing(checkpoint):
    before = {path.name: path.read_bytes() for path in checkpoint.folder.iterdir()}
    add_code(checkpoint.folder)
    assert {path.name: path.read_bytes() for path in checkpoint.folder.iterdir()} == before


@pytest.mark.parametrize("part", ["processor", "config"])
def test_a_model_or_a_processor_alone_can_carry_its_code(checkpoint, tmp_path, part):
    (checkpoint.processor if part == "processor" else checkpoint.model.config).save_pretrained(tmp_path)
    add_code(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == {path.name for path in checkpoint.folder.glob("*.py")}


@pytest.mark.parametrize(
    ("write", "named"),
    [
        pytest.param(Spa3RConfig(**load_preset("spa3r-tiny")).save_pretrained, "`spa3r`", id="another model"),
        pytest.param(lambda folder: None, "`processor_config.json`", id="an empty folder"),
    ],
)
def test_the_code_is_refused_beside_anything_else(tmp_path, write, named):
    write(tmp_path)
    with refused(named):
        add_code(tmp_path)


def test_a_save_that_fails_leaves_no_folder(checkpoint, monkeypatch):
    monkeypatch.setattr(checkpoint.processor, "save_pretrained", Mock(side_effect=OSError("full")))
    before = sorted(checkpoint.photos.iterdir())
    with pytest.raises(OSError, match="full"):
        checkpoint.save_as("failing")
    assert sorted(checkpoint.photos.iterdir()) == before


# Where the package is not installed.


def test_the_clean_process_has_neither_the_package_nor_its_other_requirements(clean):
    assert clean["present"] == []


def test_a_checkpoint_loads_by_its_own_code(clean):
    assert clean["loaded"] == {name: [cls, "transformers_modules"] for name, cls in CLASSES.items()}


def test_its_own_code_uses_every_weight(clean):
    assert clean["keys"] == {"AutoModel": [], "AutoModelForImageTextToText": []}


def test_the_code_on_the_card_gives_the_same_tokens_without_the_package(checkpoint, clean):
    assert clean["tokens"] == checkpoint.tokens


def test_the_pipeline_gives_the_same_answer_without_the_package(checkpoint, clean):
    assert clean["pipeline"] == checkpoint.answer


def test_a_video_asks_for_pyav_where_it_is_missing(clean):
    assert "PyAV" in clean["video"]


@pytest.mark.parametrize("trust", ["untrusted", "distrusted"])
@pytest.mark.parametrize("auto_class", CLASSES)
def test_code_that_is_not_trusted_is_asked_for_and_never_replaced_by_a_tokenizer(clean, trust, auto_class):
    assert clean[trust][auto_class].startswith("ValueError")
    assert "`trust_remote_code=True`" in clean[trust][auto_class]


@pytest.mark.parametrize("trust", ["plain", "plain and trusted"])
@pytest.mark.parametrize("auto_class", CLASSES)
def test_a_checkpoint_without_its_code_is_refused_and_never_replaced_by_a_tokenizer(clean, trust, auto_class):
    assert clean[trust][auto_class].startswith(("ValueError", "OSError"))


def test_a_missing_adapter_adds_nothing_by_its_own_code_too(clean):
    assert clean["missing"] and all(name.startswith("model.fusion.") for name in clean["missing"])
    assert clean["adapter"] == 0 and clean["norm"] == [1.0]
    assert clean["logits equal"]


def test_a_model_loaded_by_its_own_code_carries_it_when_saved_again(clean):
    assert clean["again"] == {name: f"loaded {cls}" for name, cls in CLASSES.items()}


# Where the package is installed.


@pytest.mark.parametrize("trust", [None, True])
@pytest.mark.parametrize("auto_class", CLASSES)
def test_the_packages_own_classes_win(checkpoint, auto_class, trust):
    loaded = getattr(transformers, auto_class).from_pretrained(checkpoint.folder, trust_remote_code=trust)
    assert type(loaded).__name__ == CLASSES[auto_class]
    assert type(loaded).__module__.startswith("spa3r.")


# Push, and load by name.


@pytest.fixture(scope="module")
def carried(checkpoint) -> Path:
    """The checkpoint with a card that names its repository."""
    return checkpoint.save_as("carried", "user/carried")


def run_with_package(hub: Hub, home: Path, photos: Path, *arguments: object):
    """Run a script in a process that uses this Hub."""
    command = [sys.executable, "-c", *map(str, arguments)]
    subprocess.run(command, env=os.environ | hub.environment(home), cwd=photos, check=True)


@pytest.fixture(scope="module")
def hub(checkpoint, carried, tmp_path_factory):
    """The Hub after a push."""
    with Hub() as hub:
        run_with_package(hub, tmp_path_factory.mktemp("pushing"), checkpoint.photos, PUSH, carried)
        yield hub


def test_a_push_is_one_commit_of_all_files_that_removes_only_earlier_weights(hub, carried):
    titles, files = zip(*hub.commits["models", "user/carried"], strict=True)
    assert titles.count("The whole") == 1 and titles[-1] == "The whole"
    pushed = {path.name: path.read_bytes() for path in carried.iterdir()}
    rest = {name: content for name, content in files[-1].items() if name not in pushed}
    assert files[-1] == rest | pushed
    assert rest == {".gitattributes": b"", "notes.txt": b"old"}


def test_a_pushed_checkpoint_loads_by_name_without_the_package_and_a_token(hub, checkpoint, run_clean, tmp_path):
    report = run_clean(CLEAN_HUB, checkpoint.photos, **hub.environment(tmp_path) | {"HF_TOKEN": ""})
    assert report["tokens"] == checkpoint.tokens


def test_a_pushed_checkpoint_loads_by_name_with_the_package(hub, carried, checkpoint, tmp_path):
    run_with_package(hub, tmp_path, checkpoint.photos, WITH_PACKAGE, tmp_path / "report.json", carried)
    model, processor, tokens = json.loads((tmp_path / "report.json").read_text())
    assert model.startswith("spa3r.") and processor.startswith("spa3r.")
    assert tokens == checkpoint.tokens


def test_a_checkpoint_without_its_code_or_card_is_not_pushed(plain):
    with refused(f"`{plain}`", "README.md", "modeling_spa3_vlm.py"):
        push_self_contained(plain, "user/toy")
