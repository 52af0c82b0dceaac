"""The parts of `spa3r serve`: batches of different scenes, the text of an answer, and the public web."""

import socket
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import serving  # noqa: F401  skips without the extra `serve`
from tiny_spa3_vlm import photo, tiny_model, tiny_processor
from transformers import GenerationConfig

from spa3r import SceneSession
from spa3r.modeling_spa3r.checkpoints.byte_tokenizer import byte_tokenizer
from spa3r.modeling_spa3r.spa3_vlm.scene_batches import advance, begin, join, keep
from spa3r.modeling_spa3r.spa3_vlm.scene_session import prepare_scene, scene_conversation, tokenize_after_prefix
from spa3r.trainers.integrations.server import public_web
from spa3r.trainers.integrations.server.answer_text import AnswerText

SCENES = [[photo(0), photo(1)], [photo(2, 40, 40)], [photo(3), photo(4, 48, 64), photo(5)]]
QUESTIONS = ["How many?", "Is it left of the door, or of the window?", "Why?"]


@pytest.fixture(scope="module", params=["paper", "append", "none"])
def model(request):
    model = tiny_model(fusion={"paper": "cross_attention"}.get(request.param, request.param))
    # Without an end, all answers are as long; the penalty depends on all tokens of a row.
    model.generation_config = GenerationConfig(repetition_penalty=1.3, pad_token_id=256)
    return model


@pytest.fixture(scope="module")
def sessions(model):
    processor = tiny_processor(num_appended_tokens=model.config.num_appended_tokens)
    return [SceneSession(model, processor, scene) for scene in SCENES]


def texts(sessions):
    return [
        tokenize_after_prefix(session.processor, session.prefix, scene_conversation(session.num_images, question))
        for session, question in zip(sessions, QUESTIONS, strict=True)
    ]


def expected(sessions, num_tokens):
    return [
        session.generate([question], max_new_tokens=num_tokens)[0].tolist()
        for session, question in zip(sessions, QUESTIONS, strict=True)
    ]


def test_questions_about_different_scenes_are_answered_together_as_alone(model, sessions):
    batch, rows = advance(model, begin(model, sessions, texts(sessions)), 5, {})
    _, more = advance(model, batch, 4, {})
    assert [first + second for first, second in zip(rows, more, strict=True)] == expected(sessions, 9)


def test_rows_that_join_and_leave_change_no_answer(model, sessions):
    wanted, all_texts = expected(sessions, 9), texts(sessions)
    two, first = advance(model, begin(model, sessions[:2], all_texts[:2]), 3, {})
    late, second = advance(model, begin(model, sessions[2:], all_texts[2:]), 2, {})
    three, third = advance(model, join(model, [two, late]), 3, {})
    _, last = advance(model, keep(model, three, [0, 2]), 3, {})
    assert first[0] + third[0] + last[0] == wanted[0]
    assert second[0] + third[2] + last[1] == wanted[2][:8]


@pytest.mark.parametrize("model", ["paper"], indirect=True)
def test_the_engine_answers_questions_about_different_scenes_in_one_batch(model, sessions, monkeypatch):
    from spa3r.trainers.integrations.server.engine import Engine, Question
    from spa3r.trainers.integrations.server.metrics import Metrics

    sizes, generate, answers = [], model.generate, [[], [], []]
    monkeypatch.setattr(
        model, "generate", lambda **options: sizes.append(len(options["input_ids"])) or generate(**options)
    )
    engine, is_done = Engine(model, sessions[0].processor, Metrics(), 16, 10**9), threading.Barrier(2)
    for index, (scene, text) in enumerate(zip(SCENES, texts(sessions), strict=True)):

        def deliver(progress, index=index):
            answers[index] += progress.tokens
            if progress.finish_reason and sum(map(len, answers)) == 3 * 16:
                is_done.wait(600)

        prepare = partial(prepare_scene, sessions[0].processor, scene)
        engine.submit(Question(str(index), prepare, None, text, 16, (), deliver, time.monotonic() + 600))
    engine.start()
    is_done.wait(600)
    engine.stop()
    monkeypatch.undo()
    assert max(sizes) == 3 and answers == expected(sessions, 16)


E_ACUTE = "\u00e9"
# Stop texts; an answer as it arrives, in texts and in bytes of that character; and what may be sent of it.
PIECES = {
    "as they are": ([], ["ab", "c"], ["ab", "c"]),
    "space around": ([], [" \n a ", "b ", "\n"], ["a", " b", ""]),
    "a character in two parts": ([], [0, 1, "t"], ["", E_ACUTE, "t"]),
    "an incomplete character last": ([], ["a", 0], ["a", "\ufffd"]),
    "a stop text": (["END"], ["a END b"], ["a"]),
    "a stop text in parts": (["END"], ["aE", "N", "D"], ["a", "", ""]),
    "the beginning of a stop text": (["END"], ["aE", "N", "x"], ["a", "", "ENx"]),
    "the beginning of a stop text last": (["END"], ["aE", "N"], ["a", "EN"]),
    "the earlier of two": (["c", "b"], ["abc"], ["a"]),
}


@pytest.mark.parametrize("case", PIECES)
def test_the_text_of_an_answer_is_sent_as_soon_as_it_is_sure(case):
    stops, arriving, pieces = PIECES[case]
    text = AnswerText(byte_tokenizer(), stops)
    both = text.tokenizer(E_ACUTE)["input_ids"]  # a token for each byte
    tokens = [[both[part]] if isinstance(part, int) else text.tokenizer(part)["input_ids"] for part in arriving]
    given = [text.add(part, is_last=index == len(tokens) - 1) for index, part in enumerate(tokens)]
    assert given == pieces and text.is_stopped == case.startswith(("a stop", "the earlier"))


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "192.168.0.1",
    "172.16.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
]
PRIVATE += ["::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address):
    assert not public_web.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111"])
def test_other_addresses_are_public(address):
    assert public_web.is_public(address)


@contextmanager
def web_server(host, respond):
    """A web server; gives its address and the paths that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            respond(self)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://{host}:{server.server_port}", asked
        finally:
            server.shutdown()


def send(content: bytes):
    def respond(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    return respond


def redirect(target: str):
    def respond(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    return respond


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.01)
    except OSError:
        pass


# Of this machine's own addresses, the tests take one for public.
PUBLIC = "127.0.0.2"


@pytest.fixture
def one_is_public(monkeypatch):
    monkeypatch.setattr(public_web, "is_public", lambda address: address == PUBLIC)


def test_a_public_file_is_fetched(one_is_public):
    with web_server(PUBLIC, send(b"image")) as (address, asked):
        assert public_web.fetch_public(f"{address}/a b?c=\u00e9", 5, 60) == b"image"
    assert asked == ["/a%20b?c=%C3%A9"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "127.1"])
def test_nothing_is_asked_of_a_private_address_by_any_name(host):
    with web_server("127.0.0.1", send(b"secret")) as (address, asked):
        with pytest.raises(ValueError, match="public"):
            public_web.fetch_public(address.replace("127.0.0.1", host), 100, 60)
    assert not asked


def test_a_redirect_does_not_lead_to_a_private_address(one_is_public):
    with (
        web_server("127.0.0.1", send(b"secret")) as (private, asked),
        web_server(PUBLIC, redirect(private)) as (address, _),
    ):
        with pytest.raises(ValueError, match="public"):
            public_web.fetch_public(address, 100, 60)
    assert not asked


def test_a_name_with_a_public_and_a_private_address_is_refused(one_is_public, monkeypatch):
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 80)) for host in (PUBLIC, "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: both)
    with pytest.raises(ValueError, match="public"):
        public_web.fetch_public("http://example.com/", 100, 60)


# What a server does, and what the refusal names.
UNUSABLE = {"large": (send(b"x" * 101), "101|100"), "endless": (drip, "long|100"), "a circle": (redirect("/"), "3")}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_public_server_that_keeps_to_no_limit_is_left(case, one_is_public):
    respond, named = UNUSABLE[case]
    with web_server(PUBLIC, respond) as (address, _), pytest.raises(ValueError, match=named):
        public_web.fetch_public(address, 100, 1)
