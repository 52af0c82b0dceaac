"""What `spa3r serve` refuses: the status, and a sentence that names what is wrong."""

import json
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import PIL.Image
import pytest
from serving import NAME, answer, ask, client_of, data_url, limits_of, openai, running_server, until, user_message
from tiny_spa3_vlm import answering_model, photo, tiny_processor

URL = data_url(photo(0))
BROKEN = URL[: len(URL) // 2 // 4 * 4]
WIDE = data_url(PIL.Image.new("RGB", (320, 320)))


@pytest.fixture(scope="module")
def model():
    return answering_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "photos").mkdir()
    photo(0).save(folder / "photos" / "door.png")
    photo(1).save(folder / "secret.png")
    (folder / "photos" / "link.png").symlink_to(folder / "secret.png")
    return folder


@pytest.fixture(scope="module")
def server(model, folder):
    limits = limits_of(root=folder / "photos", max_images=3, max_tokens=20, max_body=300_000)
    with running_server(model, tiny_processor(), limits, max_batch=4) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


def refusal(call) -> tuple[int, str]:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    error = caught.value.response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return caught.value.status_code, error["message"]


QUESTION, SAID = user_message("Why?", [URL]), {"role": "assistant", "content": "So."}
WRONG = {
    "a broken image": ({"messages": [user_message("Why?", [URL, BROKEN])]}, 400, "Image 1"),
    "no image in a data URL": (
        {"messages": [user_message("Why?", ["data:image/png;base64,aGFsbG8="])]},
        400,
        "Image 0",
    ),
    "no base64": ({"messages": [user_message("Why?", ["data:image/png;base64,%%"])]}, 400, "Image 0"),
    "a web address": ({"messages": [user_message("Why?", ["http://example.com/a.png"])]}, 400, "http://example.com"),
    "too many images": ({"messages": [user_message("Why?", [URL] * 4)]}, 400, "4 images"),
    "too many pixels": ({"messages": [user_message("Why?", [URL, WIDE])]}, 400, "image 1"),
    "a large request": ({"messages": [user_message("Why?" * 400_000, [URL])]}, 413, "300,000"),
    "no images": ({"messages": [user_message("Why?")]}, 400, "image"),
    "images later on": ({"messages": [QUESTION, SAID, QUESTION]}, 400, "messages.2"),
    "an answer last": ({"messages": [QUESTION, SAID]}, 400, "assistant"),
    "a mark of images": ({"messages": [user_message("<|image_pad|>", [URL])]}, 400, "<|image_pad|>"),
    "an unknown role": ({"messages": [{"role": "tool", "content": ""}]}, 400, "messages.0"),
    "a question without text": ({"messages": [user_message(" ", [URL])]}, 400, "messages.0"),
    "an image that is no object": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}]},
        400,
        "`messages.0.content.0.image_url`",
    ),
    "an unknown part": ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, 400, "`image_url`"),
    "a number that is a truth value": ({"max_tokens": True}, 400, "max_tokens"),
    "no messages": ({"messages": []}, 400, "messages"),
    "long answers": ({"max_tokens": 21}, 400, "21"),
    "an unsupported option": ({"seed": 7}, 400, "seed"),
    "several answers": ({"n": 2}, 400, "n`"),
    "a wrong temperature": ({"temperature": -1}, 400, "temperature"),
    "another model": ({"model": "gpt-9"}, 404, "gpt-9"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_refused_with_a_sentence_that_names_it(case, stream, client):
    changes, status, named = WRONG[case]
    request = {"model": NAME, "messages": [QUESTION], "stream": stream} | changes
    given, message = refusal(lambda: client.chat.completions.create(**request))
    assert given == status and named in message


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": 1}', b"\xff", b"[" * 10_000])
def test_a_body_that_is_no_request_is_refused(body, server):
    request = urllib.request.Request(f"{server}/v1/chat/completions", data=body)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400 and json.load(caught.value)["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/models/gpt-9"])
def test_other_addresses_are_refused_as_the_api_does(path, server):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(server + path)
    assert caught.value.code == 404 and json.load(caught.value)["error"]["message"]


def test_a_file_below_the_folder_is_read(client, folder):
    path = folder / "photos" / "door.png"
    answers = {answer(client, user_message("Why?", [url])) for url in (URL, "door.png", str(path), path.as_uri())}
    assert len(answers) == 1


OUTSIDE = [
    "../secret.png",
    "link.png",
    "/etc/passwd",
    "file:///etc/passwd",
    "missing.png",
    ".",
    "",
    "a" * 5000,
    "a\0b",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_files_elsewhere_are_refused_like_missing_ones(path, client):
    status, message = refusal(lambda: answer(client, user_message("Why?", [path])))
    assert status == 400 and "there is no file" in message


def test_no_file_is_read_without_a_folder(model):
    with running_server(model, tiny_processor()) as (address, _):
        status, message = refusal(lambda: answer(client_of(address), user_message("Why?", [__file__])))
    assert status == 400 and __file__[:40] in message


def test_the_key_opens_the_api_and_nothing_needs_it_for_health(model):
    with running_server(model, tiny_processor(), api_key="secret") as (address, _):
        assert client_of(address, "secret").models.list().data
        for call in (lambda: client_of(address, "guess").models.list(), lambda: ask(client_of(address), QUESTION)):
            assert refusal(call)[0] == 401
        assert json.load(urllib.request.urlopen(f"{address}/health")) == {"status": "ok"}


def test_more_requests_than_allowed_at_a_time_are_told_to_come_back(model):
    with running_server(model, tiny_processor(), limits_of(max_requests=1)) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, port)) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            until(lambda: "spa3r_active_requests 1.0" in urllib.request.urlopen(f"{address}/metrics").read().decode())
            assert refusal(lambda: client_of(address).models.list())[0] == 429
        until(lambda: "spa3r_active_requests 0.0" in urllib.request.urlopen(f"{address}/metrics").read().decode())
        assert client_of(address).models.list().data


def test_an_answer_that_takes_too_long_is_given_up(model, monkeypatch):
    may_answer, generate = threading.Event(), model.generate
    monkeypatch.setattr(model, "generate", lambda **options: may_answer.wait() and generate(**options))
    with running_server(model, tiny_processor(), limits_of(max_seconds=0.5)) as (address, _):
        status, message = refusal(lambda: ask(client_of(address), QUESTION))
        may_answer.set()
    assert status == 504 and "0.5 s" in message


def test_a_conversation_that_is_too_long_for_the_model_is_refused(model):
    with running_server(model, tiny_processor()) as (address, engine):
        engine.max_tokens = 30
        status, message = refusal(lambda: ask(client_of(address), QUESTION))
    assert status == 400 and "30" in message


def test_an_error_of_the_model_fails_its_questions_and_no_others(model, monkeypatch):
    with running_server(model, tiny_processor()) as (address, _):
        client, generate = client_of(address), model.generate
        monkeypatch.setattr(model, "generate", lambda **options: 1 / 0)
        assert refusal(lambda: ask(client, QUESTION))[0] == 500
        monkeypatch.setattr(model, "generate", generate)
        assert ask(client, QUESTION).usage.completion_tokens


def test_refusals_do_not_disturb_those_who_ask_at_the_same_time(client):
    expected = answer(client, QUESTION)

    def ask_or_fail(number):
        return (
            refusal(lambda: answer(client, user_message("Why?", [BROKEN])))[0]
            if number % 2
            else answer(client, QUESTION)
        )

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask_or_fail, range(8))) == [expected, 400] * 4
