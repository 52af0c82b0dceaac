"""The model of lmms-eval: a task runs through lmms-eval itself, and gets the answers of fresh calls of `generate`,
each with all images of its own document."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from tiny_spa3_vlm import GEOMETRY, answering_model, fresh_answer, photo, save_tiny_vlm, tiny_config, tiny_processor
from tiny_videos import write_video
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

from spa3r.data_scripts.common.videos import read_frames
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model

from spa3r.trainers.integrations.lmms_eval import MAX_NEW_TOKENS, Spa3VLM

NUM_FRAMES, NUM_TOKENS = 3, 6
SCENES = {"kitchen": [0, 1, 2], "hall": [3], "attic": [4, 5]}
# Questions about the same images are not neighbours. `film` is a video, `None` has no visual.
QUESTIONS = [
    ("kitchen", "How many chairs are there?"),
    ("film", "How many?"),
    ("attic", "Is the <image>sofa near?"),
    ("kitchen", "Why?"),
    ("hall", "How large is the room, in meters?"),
    ("film", "Which of the two is nearer to the door, the sofa or the table?"),
    ("kitchen", "Is it left of the door?"),
    (None, "Hello."),
    ("attic", "Where?"),
    ("kitchen", "How long is the table?"),
    (None, "Good evening to you."),
]
TASK = """\
task: rooms
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visuals_of
doc_to_text: question
doc_to_target: question
process_results: !function utils.score
metric_list:
  - metric: length
    aggregation: mean
    higher_is_better: true
generation_kwargs:
  max_new_tokens: {num_tokens}
  temperature: 0
  do_sample: false
"""
UTILS = """\
def visuals_of(doc):
    return [doc["video"]] if doc["video"] else doc["images"]


def score(doc, results):
    return {"length": len(results[0])}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp("models") / "spa3-vlm-tiny")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("videos") / "film.mp4", 9))


@pytest.fixture(scope="module")
def task(video, tmp_path_factory):
    """A folder with a task for `--include_path`, as in the guide of lmms-eval."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": question, "images": images_of(scene), "video": video if scene == "film" else None}
        for scene, question in QUESTIONS
    ]
    features = Features({"question": Value("string"), "images": List(Image()), "video": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(folder / "questions.parquet")
    (folder / "utils.py").write_text(UTILS)
    (folder / "rooms.yaml").write_text(TASK.format(questions=folder / "questions.parquet", num_tokens=NUM_TOKENS))
    return folder


@pytest.fixture(scope="module")
def expected(video):
    """The answer of a fresh call of `generate` to each question."""
    views = {scene: images_of(scene) for scene in SCENES}
    views |= {"film": read_frames(video, NUM_FRAMES), None: []}
    model = answering_model()
    return [fresh_answer(model, views[scene], text.replace("<image>", ""), NUM_TOKENS) for scene, text in QUESTIONS]


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return Spa3VLM(str(checkpoint), batch_size=2, max_num_frames=NUM_FRAMES, device="cpu")


def images_of(scene):
    return [photo(seed) for seed in SCENES.get(scene, [])]


def request(number, scene, question, **options):
    """Make a request as lmms-eval does."""
    arguments = (question, options, lambda doc: images_of(scene), number, "rooms", "test")
    metadata = {"task": "rooms", "doc_id": number, "repeats": 1}
    return Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)


def answers_of(model, *requests):
    model.task_dict = {"rooms": {"test": [None] * len(requests)}}
    return model.generate_until(list(requests))


def run_lmms_eval(num_processes, checkpoint, task, batch_size, output):
    """Run lmms-eval, and return the answers that it logs in the order of the documents."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command = [sys.executable, *(launcher if num_processes > 1 else [])]
    command += ["-m", "lmms_eval", "--model", "spa3_vlm", "--tasks", "rooms"]
    command += ["--model_args", f"pretrained={checkpoint},max_num_frames={NUM_FRAMES}", "--include_path", str(task)]
    command += ["--batch_size", str(batch_size), "--log_samples", "--output_path", str(output)]
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(output / "home"), "OMP_NUM_THREADS": "1"}
    settings |= {"ACCELERATE_USE_CPU": "true"}  # without it, lmms-eval does not connect processes without GPUs
    done = subprocess.run(command, cwd=output, env=os.environ | settings, capture_output=True, text=True)
    files, log = list(output.rglob("*samples_rooms.jsonl")), done.stdout + done.stderr
    assert len(files) == 1, log  # its exit status is 0 even after an error
    assert f"Running on rank {num_processes - 1}" in log
    samples = sorted(map(json.loads, files[0].read_text().splitlines()), key=lambda sample: sample["doc_id"])
    # `filtered_resps` is stripped. `resps` is logged only if it differs.
    return [sample.get("resps", sample["filtered_resps"]) for sample in samples]


def test_lmms_eval_finds_the_model_by_the_entry_point():
    assert get_model("spa3_vlm") is Spa3VLM


@pytest.mark.parametrize(
    "num_processes, batch_size", [(1, 1), (1, 3), (2, 3)], ids=["one by one", "batches", "two processes"]
)
def test_a_task_is_answered_as_by_fresh_calls(num_processes, batch_size, checkpoint, task, expected, tmp_path):
    assert run_lmms_eval(num_processes, checkpoint, task, batch_size, tmp_path) == expected


def test_the_first_image_of_a_document_alone_gives_another_answer(expected):
    one = images_of("kitchen")[:1]
    assert fresh_answer(answering_model(), one, QUESTIONS[0][1], NUM_TOKENS) != expected[0]


def test_the_same_images_are_encoded_once(loaded):
    calls = []
    hook = loaded.model.model.spatial_encoder.register_forward_hook(lambda *_: calls.append(1))
    scenes = ("kitchen", "attic", "kitchen", "kitchen", "attic")
    answers_of(loaded, *(request(number, scene, "Why?", max_new_tokens=1) for number, scene in enumerate(scenes)))
    hook.remove()
    assert len(calls) == 2


def test_requests_about_the_same_images_keep_their_own_options(loaded):
    first, second = request(0, "hall", "Why?", max_new_tokens=3), request(1, "hall", "Why?", max_new_tokens=7)
    expected = [fresh_answer(answering_model(), images_of("hall"), "Why?", num_tokens) for num_tokens in (3, 7)]
    assert answers_of(loaded, first, second) == expected


def test_spaces_around_an_answer_are_kept(loaded, monkeypatch):
    monkeypatch.setattr(loaded.processor, "batch_decode", lambda tokens, **kwargs: [" 3 \n"] * len(tokens))
    assert answers_of(loaded, request(0, "hall", "How many?", max_new_tokens=1)) == [" 3 \n"]


@pytest.mark.parametrize("until", ["nd", ["here", "nd"], ["nd", ""]])
def test_an_answer_ends_where_the_task_says(loaded, monkeypatch, until):
    monkeypatch.setattr(loaded.processor, "batch_decode", lambda tokens, **kwargs: ["A and B\n\nhere"] * len(tokens))
    assert answers_of(loaded, request(0, "hall", "Which?", max_new_tokens=1, until=until)) == ["A a"]


def test_the_default_end_of_lmms_eval_is_ignored(loaded, monkeypatch):
    monkeypatch.setattr(loaded.processor, "batch_decode", lambda tokens, **kwargs: ["A\n\nB"] * len(tokens))
    assert answers_of(loaded, request(0, "hall", "Which?", max_new_tokens=1, until=["\n\n"])) == ["A\n\nB"]


GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@pytest.mark.parametrize(
    "asked, used",
    [
        ({"until": None, "top_p": None, "image_aspect_ratio": "pad"}, {"max_new_tokens": MAX_NEW_TOKENS} | GREEDY),
        ({"max_new_tokens": 8, "num_beams": 2}, {"max_new_tokens": 8, "num_beams": 2} | GREEDY),
        ({"temperature": 0, "top_p": 1.0, "do_sample": True}, GREEDY),
        ({"temperature": 0.7, "do_sample": False}, GREEDY),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"do_sample": True, "top_p": 0.9}, {"do_sample": True, "top_p": 0.9}),
    ],
)
def test_generation_is_greedy_unless_the_task_samples(loaded, monkeypatch, asked, used):
    given = {}

    def generate(self, questions, **options):
        given.update(options)
        return torch.zeros(1, 1, dtype=torch.long)

    monkeypatch.setattr("spa3r.trainers.integrations.lmms_eval.SceneSession.generate", generate)
    answers_of(loaded, request(0, "hall", "Which?", **asked))
    assert given == {"max_new_tokens": MAX_NEW_TOKENS, "num_beams": 1} | used


def test_copies_that_keep_processes_in_lockstep_are_not_answered(loaded):
    copy = request(0, "hall", "Why?", max_new_tokens=2)
    copy.metadata["__padding_only__"] = True
    answers = answers_of(loaded, request(0, "hall", "Why?", max_new_tokens=2), copy)
    assert answers == [fresh_answer(answering_model(), images_of("hall"), "Why?", 2), ""]


def test_a_plain_qwen_is_asked_as_well(tmp_path):
    torch.manual_seed(0)
    qwen = Qwen2_5_VLForConditionalGeneration(tiny_config().vlm_config).eval()
    qwen.generation_config = GenerationConfig(eos_token_id=258, pad_token_id=256)
    qwen.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = Spa3VLM(str(tmp_path), device="cpu")
    model.processor = tiny_processor()  # small images
    answer = fresh_answer(qwen, images_of("kitchen"), "Why?", NUM_TOKENS, drop=(*GEOMETRY, "num_views"))
    assert answers_of(model, request(0, "kitchen", "Why?", max_new_tokens=NUM_TOKENS)) == [answer]


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until_multi_round"])
def test_other_kinds_of_requests_are_refused(loaded, kind):
    with pytest.raises(NotImplementedError, match=f"`{kind}`"):
        getattr(loaded, kind)([])


@pytest.mark.parametrize("name", ["batch_size", "max_num_frames"])
@pytest.mark.parametrize("value", ["auto", 0])
def test_wrong_numbers_are_refused_before_anything_is_loaded(name, value):
    with pytest.raises(ValueError, match=f"`{name}`.*{value!r}"):
        Spa3VLM("nowhere", **{name: value})
