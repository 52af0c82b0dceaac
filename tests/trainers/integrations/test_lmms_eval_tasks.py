"""The tasks of lmms-eval for MMSI, MindCube, SITE, BLINK, 3DSRBench and EmbSpatial, on documents of their own layouts:
answers equal those of fresh calls with the conversation that the task itself lays out."""

from importlib import import_module

import pytest
from tiny_spa3_vlm import answering_model, photo, prepare, save_tiny_vlm, tiny_processor

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

from lmms_eval.api.instance import Instance

from spa3r.trainers.integrations.lmms_eval import Spa3VLM

NUM_TOKENS = 6
OPTIONS = ["the sofa", "the door"]
SMALL, HIGH = photo(4, 56, 42), photo(5, 48, 64)
MINDCUBE = "Look at <image> from the north and at <image> from the east.\nWhat is behind you? A. sofa B. door"
SITE = {"options": OPTIONS, "answer": "A", "category": "counting & existence"}
# Modules of tasks, the prefix of their functions, options that their files set, and documents in their columns.
TASKS = {
    "MMSI": (
        "mmsi_bench",
        "msr_doc_to_{}",
        {"post_prompt": "\nAnswer with the option's letter from the given choices directly."},
        {
            "three images of different sizes": {"images": [photo(0), SMALL, HIGH], "question": "Which? A: 1, B: 2"},
            "no image": {"images": [], "question": "Which? A: 1, B: 2"},
        },
    ),
    "MindCube": (
        "mindcube",
        "mindcube_doc_to_{}",
        {},
        {
            "images between the words": {"images": [photo(0), photo(1)], "input_prompt": MINDCUBE},
            "images before the words": {"images": [photo(1), photo(2)], "input_prompt": "<image>\n<image> Where?"},
        },
    ),
    "SITE": (
        "sitebench",
        "spatial_doc_to_{}_image",
        {},
        {
            "images before the words": SITE | {"visual": ["0.png", "1.png"], "question": "How many doors?"},
            "images in the options": SITE
            | {"visual": ["0.png", "1.png"], "question": "Which is it?", "options": ["<image>", "<image>"]},
            "one image": SITE | {"visual": ["1.png"], "question": "Is <image> a kitchen?"},
        },
    ),
    "BLINK": (
        "blink",
        "blink_doc_to_{}",
        {"pre_prompt": "Note: You only need to respond with {}.\n"},
        {
            "a piece of another image": {"prompt": "Which fits?", "choices": OPTIONS}
            | {"image_1": photo(0), "image_2": SMALL, "image_3": HIGH, "image_4": None},
            "one image": {"prompt": "Which?", "choices": OPTIONS, "image_1": SMALL, "image_2": None},
        },
    ),
    "3DSRBench": (
        "3dsrbench",
        "doc_to_{}",
        {"post_prompt": "Please select the correct answer from the options above. \n"},
        {
            "one image": {
                "image": HIGH,
                "question": "Which is higher?",
                "A": "sofa",
                "B": "door",
                "C": None,
                "D": "nan",
            }
        },
    ),
    "EmbSpatial": (
        "embspatial",
        "embspatial_doc_to_{}",
        {"pre_prompt": "Note: You only need to respond with A, B, C, D.\n"},
        {"one image": {"image": photo(0), "question": "Which is left?", "answer_options": OPTIONS}},
    ),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return Spa3VLM(str(save_tiny_vlm(tmp_path_factory.mktemp("models"))), batch_size=2, device="cpu")


def answer_of(conversation):
    """The greedy answer of one call of `generate` to a conversation of lmms-eval."""
    content = [
        {"type": "image", "image": part["url"]} if part["type"] == "image" else part
        for part in conversation[0]["content"]
    ]
    processor = tiny_processor()
    inputs = prepare(processor, [{"role": "user", "content": content}])
    tokens = answering_model().generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", TASKS)
def test_documents_are_answered_as_by_fresh_calls(name, loaded, tmp_path, monkeypatch):
    module, function, options, documents = TASKS[name]
    task = import_module(f"lmms_eval.tasks.{module}.utils")
    text, visual, messages = (getattr(task, function.format(kind)) for kind in ("text", "visual", "messages"))
    for number in range(2):
        photo(number).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(task, "cache_dir", str(tmp_path), raising=False)  # where SITE's images lie
    documents = list(documents.values())
    loaded.task_dict = {name: {"test": documents}}
    requests = []
    for number, document in enumerate(documents):
        arguments = (text(document, options), {"max_new_tokens": NUM_TOKENS}, visual, number, name, "test")
        metadata = {"task": name, "doc_id": number, "repeats": 1}
        requests.append(Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata))
    assert loaded.generate_until(requests) == [answer_of(messages(document, options)) for document in documents]


def test_where_an_image_stands_matters():
    between, before = ("Look at <image> and <image> again.", "<image><image>Look at and again.")
    parts = [[{"type": "image", "url": photo(0)}], [{"type": "image", "url": photo(1)}]]

    def laid_out(text):
        first, second, third = text.split("<image>")
        texts = [[{"type": "text", "text": part}] if part else [] for part in (first, second, third)]
        return [{"role": "user", "content": [*texts[0], *parts[0], *texts[1], *parts[1], *texts[2]]}]

    assert answer_of(laid_out(between)) != answer_of(laid_out(before))
