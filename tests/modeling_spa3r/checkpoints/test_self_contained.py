"""Spa3-VLM on the Hub: checkpoints that carry their code to where this package is not, their cards, push and load."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from tiny_spa3_vlm import photo, tiny_config, tiny_model, tiny_processor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from spa3r import Spa3RModel, Spa3VLMForConditionalGeneration, Spa3VLMProcessor
from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.modeling_spa3r.checkpoints.self_contained import (
    Score,
    add_code,
    push_self_contained,
    save_self_contained,
    spa3_vlm_card,
)

UNTRAINED = {"vlm": None, "vggt": None, "spatial_encoder": None, "fusion": None}
MODELS = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText")
PROCESSORS = ("AutoProcessor", "AutoImageProcessor")
CLASSES = {
    "AutoConfig": "Spa3VLMConfig",
    "AutoModel": "Spa3VLMModel",
    "AutoModelForImageTextToText": "Spa3VLMForConditionalGeneration",
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
report["untrusted"] = {name: refusal(name, "user/carried") for name in CLASSES}
report["plain and trusted"] = {name: refusal(name, "user/plain", trust_remote_code=True) for name in CLASSES}
scope = run_card(open(hf_hub_download("user/carried", "README.md")).read())
report["tokens"] = scope["tokens"].tolist()
json.dump(report, open(output, "w"))
"""
PUSH = """
import json, re, sys
from huggingface_hub import HfApi
from transformers import AutoModelForImageTextToText, AutoProcessor
from spa3r.modeling_spa3r.checkpoints.self_contained import push_self_contained

_, output, folder = sys.argv
# What a larger checkpoint of the same name has left there.
HfApi().create_repo("user/carried")
for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id="user/carried")
push_self_contained(folder, "user/carried", commit_message="The whole")

AutoModelForImageTextToText.from_pretrained(folder).push_to_hub("user/plain")
AutoProcessor.from_pretrained(folder).push_to_hub("user/plain")
card = open(f"{folder}/README.md").read()
(example, _) = re.findall(r"```python\\n(.*?)```", card, re.DOTALL)
report = {}
for repository in ("user/carried", "user/plain"):
    scope = {}
    exec(example.replace("user/carried", repository), scope)
    modules = [type(scope[name]).__module__ for name in ("model", "processor")]
    report[repository] = [*modules, scope["tokens"].tolist()]
json.dump(report, open(output, "w"))
"""


def required_by(*names: str) -> list[metadata.Distribution]:
    """What is installed of these names and of all that they require."""
    found, waiting = {}, [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        distribution = metadata.distribution(requirement.name)
        if distribution.name not in found:
            found[distribution.name] = distribution
            required = map(Requirement, distribution.requires or [])
            waiting += [
                other
                for other in required
                if not other.marker
                or any(other.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras))
            ]
    return list(found.values())


@pytest.fixture(scope="module")
def run_clean(tmp_path_factory):
    """Runs a script where torch, transformers, pillow and what they require are all that is installed."""
    site = tmp_path_factory.mktemp("site")
    for distribution in required_by("torch", "transformers", "pillow"):
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
    tokens: list = field(default_factory=list)
    answer: str = ""

    def blocks(self) -> list[str]:
        """Code on the card: with the package, and without."""
        return re.findall(r"```python\n(.*?)```", (self.folder / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    home = tmp_path_factory.mktemp("checkpoint")
    model, processor, folder = tiny_model(), tiny_processor(), home / "toy-0.1"
    photo(1).save(home / "door.jpg")
    photo(2).save(home / "sofa.jpg")
    save_self_contained(model, processor, folder, spa3_vlm_card(str(folder), model.config, UNTRAINED))
    content = [{"type": "image", "path": str(home / name)} for name in ("door.jpg", "sofa.jpg")]
    content.append({"type": "text", "text": "How many chairs are in the room?"})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=16)
    answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return Checkpoint(model, processor, folder, home, tokens.tolist(), answer)


@pytest.fixture(scope="module")
def plain(checkpoint) -> Path:
    """The same, saved by the library alone."""
    folder = checkpoint.photos / "plain"
    checkpoint.model.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clean(checkpoint, plain, run_clean) -> dict:
    """What a process without the package makes of folders."""
    without_adapter = checkpoint.photos / "without_adapter"
    card = spa3_vlm_card(str(without_adapter), checkpoint.model.config, UNTRAINED)
    save_self_contained(checkpoint.model, checkpoint.processor, without_adapter, card)
    file = without_adapter / "model.safetensors"
    rest = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("model.fusion.")}
    save_file(rest, file, metadata={"format": "pt"})
    again = checkpoint.photos / "again"
    return run_clean(CLEAN_FOLDER, checkpoint.photos, checkpoint.folder, plain, without_adapter, again)


# The code beside the weights.


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Level and name of each module that is imported; in a `try` it may be missing."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((0, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.level, child.module
        elif not isinstance(child, ast.Try):
            yield from imports(child)


def test_a_carried_file_imports_those_beside_it_and_what_is_installed_with_torch_transformers_and_pillow(checkpoint):
    files = {path.stem: path for path in checkpoint.folder.glob("*.py")}
    installed = set(sys.stdlib_module_names)
    for distribution in required_by("torch", "transformers", "pillow"):
        installed |= {path.parts[0].removesuffix(".py") for path in distribution.files}
    for name, file in files.items():
        for level, module in imports(ast.parse(file.read_text())):
            assert level <= 1 and module.split(".")[0] in (files if level else installed), (name, module)


def test_a_carried_file_tells_its_package_and_licence(checkpoint):
    head = f"# From the package spa3r {metadata.version('spa3r')}, Apache License 2.0.\n"
    assert all(file.read_text().startswith(head) for file in checkpoint.folder.glob("*.py"))


def test_the_folder_holds_the_model_its_processor_its_code_and_its_card_alone(checkpoint, plain):
    names = {path.name for path in checkpoint.folder.iterdir() if path.suffix != ".py"}
    assert names == {path.name for path in plain.iterdir()} | {"README.md"}


def test_adding_the_code_again_changes_nothing(checkpoint):
    before = {path.name: path.read_bytes() for path in checkpoint.folder.iterdir()}
    add_code(checkpoint.folder)
    assert {path.name: path.read_bytes() for path in checkpoint.folder.iterdir()} == before


def test_a_model_or_a_processor_alone_can_carry_its_code(checkpoint, tmp_path):
    checkpoint.processor.save_pretrained(tmp_path / "processor")
    checkpoint.model.config.save_pretrained(tmp_path / "config")
    for folder in (tmp_path / "processor", tmp_path / "config"):
        add_code(folder)
        assert {path.name for path in folder.glob("*.py")} == {path.name for path in checkpoint.folder.glob("*.py")}


def test_the_code_is_refused_beside_another_model(tmp_path):
    Spa3RModel(Spa3RConfig(**load_preset("spa3r-tiny"))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a `spa3r` model; only one of type `spa3_vlm` can carry its code"):
        add_code(tmp_path)


def test_the_code_is_refused_beside_nothing(tmp_path):
    with pytest.raises(ValueError, match="neither a `config.json` nor a `processor_config.json`; save"):
        add_code(tmp_path)


def test_a_save_that_fails_leaves_no_folder(checkpoint, tmp_path, monkeypatch):
    def fail(folder):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.processor, "save_pretrained", fail)
    card = spa3_vlm_card("toy", checkpoint.model.config, UNTRAINED)
    with pytest.raises(OSError, match="No space left"):
        save_self_contained(checkpoint.model, checkpoint.processor, tmp_path / "toy", card)
    assert not list(tmp_path.iterdir())


# Where the package is not.


def test_the_clean_process_has_neither_the_package_nor_what_else_it_brings(clean):
    assert clean["present"] == []


@pytest.mark.parametrize("auto_class", CLASSES)
def test_a_checkpoint_loads_by_its_own_code(clean, auto_class):
    assert clean["loaded"][auto_class] == [CLASSES[auto_class], "transformers_modules"]


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForImageTextToText"])
def test_its_own_code_takes_every_weight(clean, auto_class):
    assert clean["keys"][auto_class] == []


def test_the_code_on_the_card_gives_the_same_tokens_without_the_package(checkpoint, clean):
    assert clean["tokens"] == checkpoint.tokens


def test_the_pipeline_gives_the_same_answer_without_the_package(checkpoint, clean):
    assert clean["pipeline"] == checkpoint.answer


def test_without_pyav_a_video_is_what_asks_for_it(clean):
    assert clean["video"] == "Reading videos needs PyAV: `pip install av`; or give the frames as images."


@pytest.mark.parametrize("auto_class", CLASSES)
@pytest.mark.parametrize("trust", ["untrusted", "distrusted"])
def test_code_that_is_not_trusted_is_asked_for_and_never_replaced_by_a_tokenizer(clean, trust, auto_class):
    assert clean[trust][auto_class].startswith("ValueError")
    assert "Please pass the argument `trust_remote_code=True`" in clean[trust][auto_class]


@pytest.mark.parametrize("trust", ["plain", "plain and trusted"])
@pytest.mark.parametrize("auto_class", CLASSES)
def test_a_checkpoint_without_its_code_is_refused_and_never_replaced_by_a_tokenizer(clean, trust, auto_class):
    assert clean[trust][auto_class].startswith(("ValueError", "OSError"))


def test_a_missing_adapter_is_silent_by_its_own_code_too(clean):
    assert clean["missing"] and all(name.startswith("model.fusion.") for name in clean["missing"])
    assert clean["adapter"] == 0 and clean["norm"] == [1.0]


def test_with_a_missing_adapter_logits_are_the_base_models_by_its_own_code_too(clean):
    assert clean["logits equal"]


@pytest.mark.parametrize("auto_class", CLASSES)
def test_what_was_loaded_by_its_own_code_carries_it_when_saved_again(clean, auto_class):
    assert clean["again"][auto_class] == f"loaded {CLASSES[auto_class]}"


# Where the package is.


@pytest.mark.parametrize("trust", [None, True])
@pytest.mark.parametrize(
    "auto_class", [AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoImageProcessor]
)
def test_the_packages_own_classes_win(checkpoint, auto_class, trust):
    loaded = auto_class.from_pretrained(checkpoint.folder, trust_remote_code=trust)
    assert type(loaded).__name__ == CLASSES[auto_class.__name__]
    assert type(loaded).__module__.startswith("spa3r.")


def test_the_code_on_the_card_gives_the_same_tokens_with_the_package(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.photos)
    scope = {}
    exec(checkpoint.blocks()[0], scope)
    assert scope["tokens"].tolist() == checkpoint.tokens


# Push, and load by name.


@pytest.fixture(scope="module")
def carried(checkpoint) -> Path:
    """The checkpoint with a card that names its repository."""
    card = spa3_vlm_card("user/carried", checkpoint.model.config, UNTRAINED)
    save_self_contained(checkpoint.model, checkpoint.processor, checkpoint.photos / "carried", card)
    return checkpoint.photos / "carried"


@pytest.fixture(scope="module")
def hub(checkpoint, carried, tmp_path_factory):
    """The Hub after a push with the code and one without; `report` is what the process that pushed has loaded."""
    home = tmp_path_factory.mktemp("pushing")
    with Hub() as hub:
        process = subprocess.run(
            [sys.executable, "-c", PUSH, home / "report.json", carried],
            env=os.environ | hub.environment(home / "home"),
            cwd=checkpoint.photos,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        hub.report = json.loads((home / "report.json").read_text())
        yield hub


@pytest.fixture(scope="module")
def clean_from_hub(hub, checkpoint, run_clean, tmp_path_factory) -> dict:
    """What a process without the package, and without a token, makes of repositories."""
    environment = hub.environment(tmp_path_factory.mktemp("home")) | {"HF_TOKEN": ""}
    return run_clean(CLEAN_HUB, checkpoint.photos, **environment)


def test_a_push_is_one_commit(hub):
    assert [title for title, _ in hub.commits["models", "user/carried"]].count("The whole") == 1
    assert hub.commits["models", "user/carried"][-1][0] == "The whole"


def test_a_push_brings_every_file_as_it_is(hub, carried):
    files = hub.files("user/carried")
    assert all(files[path.name] == path.read_bytes() for path in carried.iterdir())


def test_a_push_removes_weights_that_are_no_longer_part_of_it_and_nothing_else(hub):
    files = hub.files("user/carried")
    assert "model-00001-of-00002.safetensors" not in files and "model.safetensors.index.json" not in files
    assert files["notes.txt"] == b"old"


def test_a_pushed_checkpoint_loads_by_name_without_the_package(clean_from_hub, checkpoint):
    assert clean_from_hub["tokens"] == checkpoint.tokens


@pytest.mark.parametrize("auto_class", CLASSES)
def test_a_pushed_checkpoint_asks_for_trust(clean_from_hub, auto_class):
    assert "Please pass the argument `trust_remote_code=True`" in clean_from_hub["untrusted"][auto_class]


@pytest.mark.parametrize("auto_class", CLASSES)
def test_a_plain_push_is_refused_where_the_package_is_not(clean_from_hub, auto_class):
    assert clean_from_hub["plain and trusted"][auto_class].startswith(("ValueError", "OSError"))


@pytest.mark.parametrize("repository", ["user/carried", "user/plain"])
def test_a_pushed_checkpoint_loads_by_name_with_the_package(hub, checkpoint, repository):
    model, processor, tokens = hub.report[repository]
    assert model.startswith("spa3r.") and processor.startswith("spa3r.")
    assert tokens == checkpoint.tokens


def test_a_plain_push_carries_no_code(hub):
    assert not [name for name in hub.files("user/plain") if name.endswith(".py")]


def test_a_checkpoint_without_its_code_or_card_is_not_pushed(plain):
    with pytest.raises(ValueError, match=r"lacks README.md, .*modeling_spa3_vlm.py.* of a self-contained checkpoint"):
        push_self_contained(plain, "user/toy")


# Cards.


def test_the_card_names_base_models_and_their_licences():
    origins = {
        "vlm": "checkpoints/Qwen2.5-VL-3B-Instruct",
        "vggt": "facebook/VGGT-1B",
        "spatial_encoder": "runs/paper/model",
        "fusion": None,
    }
    card = spa3_vlm_card("you/spa3-vlm-4b", tiny_config(), origins, trained=["vlm", "fusion"])
    assert card.data.base_model == ["Qwen/Qwen2.5-VL-3B-Instruct", "facebook/VGGT-1B"]
    assert card.data.license == "other"
    assert "Qwen Research License" in card.text and "CC BY-NC 4.0" in card.text
    assert "from `runs/paper/model`, under the licence of that." in card.text
    assert "- Adapter between the two: trained from scratch." in card.text


@pytest.mark.parametrize(
    ("checkpoint_name", "licence"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0"),
        ("facebook/VGGT-1B-Commercial", "the licence stated there"),
    ],
)
def test_the_card_states_no_licence_but_a_known_one(checkpoint_name, licence):
    card = spa3_vlm_card("toy", tiny_config(), UNTRAINED | {"vlm": checkpoint_name})
    (line,) = [line for line in card.text.splitlines() if line.startswith("- Vision-language model")]
    assert f"[{checkpoint_name}](https://huggingface.co/{checkpoint_name})" in line and licence in line


def test_the_card_says_what_is_untrained_and_claims_no_licence(checkpoint):
    card = ModelCard.load(checkpoint.folder / "README.md")
    assert card.text.count("**untrained**: random weights, for demonstrations only.") == 3
    assert "the model answers as the vision-language model alone" in card.text
    assert card.data.license is None and card.data.base_model is None


def test_an_untrained_projection_of_appended_latents_is_not_called_silent():
    card = spa3_vlm_card("toy", tiny_config(fusion="append"), UNTRAINED)
    assert "- Adapter between the two: **untrained**: random weights" in card.text


def test_the_card_gives_training_data_and_scores_with_their_protocol():
    scores = [Score("VSI-Bench", "32 frames, greedy, 16 tokens", "12.3")]
    card = spa3_vlm_card("toy", tiny_config(), UNTRAINED, training_data=["VSI-590K"], scores=scores)
    assert "## Training data\n\n- VSI-590K" in card.text
    assert "| VSI-Bench | 32 frames, greedy, 16 tokens | 12.3 |" in card.text


def test_the_card_of_a_model_that_was_neither_tuned_nor_measured_says_so(checkpoint):
    card = ModelCard.load(checkpoint.folder / "README.md")
    assert "## Training data\n\nNot instruction-tuned." in card.text
    assert "## Evaluation\n\nNot evaluated." in card.text


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"fusion": "none"}, {"vlm"}),
        ({"spatial_representation": "vggt"}, {"vlm", "vggt", "fusion"}),
        ({"fusion": "append"}, {"vlm", "vggt", "spatial_encoder", "fusion"}),
    ],
)
def test_the_card_takes_the_parts_that_a_model_has(changes, parts):
    card = spa3_vlm_card("toy", tiny_config(**changes), dict.fromkeys(parts, "somewhere/weights"))
    assert card.text.count("from `somewhere/weights`") == len(parts)


def test_a_part_of_which_nothing_is_said_is_refused():
    with pytest.raises(ValueError, match=r"`origins` must tell where the weights of .*'fusion'.* got \['vlm'\]"):
        spa3_vlm_card("toy", tiny_config(), {"vlm": None})


def test_a_trained_part_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match=r"`trained` names \['lm'\], but the parts of this model are"):
        spa3_vlm_card("toy", tiny_config(), UNTRAINED, trained=["lm"])
