"""The model of VLMEvalKit: messages get the answers of fresh calls, and VLMEvalKit's loop asks a small data set."""

from functools import partial

import pytest
from tiny_spa3_vlm import answering_model, photo, prepare, save_tiny_vlm, tiny_processor, user

pytest.importorskip("vlmeval", reason="VLMEvalKit is not installed")

import pandas as pd
from vlmeval.dataset import build_dataset
from vlmeval.smp import encode_image_to_base64, load

from spa3r.trainers.integrations import vlmeval as adapter
from spa3r.trainers.integrations.vlmeval import Spa3VLM

NUM_TOKENS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp("models") / "spa3-vlm-tiny")


@pytest.fixture(scope="module")
def loaded(folder):
    return Spa3VLM(str(folder), max_new_tokens=NUM_TOKENS, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Paths of photos, two of another size."""
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(64, 48), (64, 48), (56, 42), (48, 64)]
    for number, size in enumerate(sizes):
        photo(number, *size).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(len(sizes))]


def fresh(message):
    """The greedy answer of one call of `generate` to the parts of a message, in their order."""
    parts = [{"type": "image", "image": value} if kind == "image" else value for kind, value in message]
    processor = tiny_processor()
    inputs = prepare(processor, user(*parts))
    tokens = answering_model().generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


# Kinds of parts, with numbers of photos and texts.
MESSAGES = {
    "images, then a question": [("image", 0), ("image", 1), ("text", "How many?")],
    "another question about them": [("image", 0), ("image", 1), ("text", "Where is the door?")],
    "images between texts": [("text", "Look at"), ("image", 0), ("text", "and"), ("image", 1), ("text", "Where?")],
    "images of different sizes": [("image", 1), ("image", 2), ("image", 3), ("text", "Which?")],
    "two texts after an image": [("image", 2), ("text", "Hint."), ("text", "Which?")],
    "no image": [("text", "Hello.")],
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_is_answered_as_by_a_fresh_call(kind, loaded, photos):
    message = [(part, photos[value] if part == "image" else value) for part, value in MESSAGES[kind]]
    given = [{"type": part, "value": value} for part, value in message]
    assert loaded.generate(given, dataset="BLINK") == fresh(message)


def test_images_are_encoded_once_for_questions_that_follow_each_other(loaded, photos):
    calls = []
    hook = loaded.model.model.spatial_encoder.register_forward_hook(lambda *_: calls.append(1))
    for paths, question in ((photos[:2], "Where?"), (photos[:2], "Why?"), (photos[1:2], "Why?")):
        loaded.generate([*({"type": "image", "value": path} for path in paths), {"type": "text", "value": question}])
    hook.remove()
    assert len(calls) == 2


def test_a_video_is_refused_as_its_frames_come_as_images(loaded, tmp_path):
    (tmp_path / "film.mp4").touch()
    with pytest.raises(AssertionError, match="Invalid input type: video"):
        loaded.generate([{"type": "video", "value": str(tmp_path / "film.mp4")}])


def test_vlmevalkit_itself_asks_all_questions_of_a_data_set(loaded, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", str(tmp_path))
    rows = [
        {"index": number, "image": encode_image_to_base64(photo(number)), "question": question}
        | {"A": "the sofa", "B": "the door", "answer": "A"}
        for number, question in enumerate(["Which is left?", "Which is nearer?"])
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "rooms.tsv", sep="\t", index=False)
    monkeypatch.setattr(adapter, "Spa3VLM", partial(Spa3VLM, max_new_tokens=NUM_TOKENS, device="cpu"))
    monkeypatch.setattr("sys.argv", ["vlmeval"])
    adapter.main([str(folder), "--data", "rooms", "--mode", "infer", "--work-dir", str(tmp_path / "run")])
    (file,) = (tmp_path / "run").rglob(f"{folder.name}_rooms.xlsx")
    given = list(load(str(file))["prediction"].fillna("").astype(str))
    dataset = build_dataset("rooms")
    messages = [dataset.build_prompt(dataset.data.iloc[number]) for number in range(len(rows))]
    assert given == [fresh([(part["type"], part["value"]) for part in message]) for message in messages]


def test_vllm_is_refused():
    with pytest.raises(ValueError, match="`use_vllm`.*True"):
        Spa3VLM("nowhere", use_vllm=True)
