"""`spa3r serve` through the `openai` client, beside what `SceneSession` and `generate` answer."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import (
    NAME,
    answer,
    ask,
    client_of,
    counted,
    data_url,
    metric,
    openai,
    running_server,
    until,
    user_message,
)
from tiny_spa3_vlm import answering_model, conversation, photo, prepare, tiny_processor

from spa3r import SceneSession, Spa3RModel

SCENES = [[photo(0), photo(1)], [photo(2, 40, 40)], [photo(3), photo(4, 48, 64), photo(5)], [photo(6, 90, 40)]]
URLS = [[data_url(image) for image in scene] for scene in SCENES]
QUESTIONS = ["How many?", "Why?", "Is it left of the door, or of the window?", "Where is the chair?"]


@pytest.fixture(scope="module")
def model():
    return answering_model()


@pytest.fixture(scope="module")
def sessions(model):
    return [SceneSession(model, tiny_processor(), scene) for scene in SCENES]


@pytest.fixture(scope="module")
def server(model):
    with running_server(model, tiny_processor()) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


def whole_answer(model, scene, *turns, system=None):
    """The answer of one fresh call of `generate` to a conversation of several turns."""
    processor = tiny_processor()
    messages = [{"role": "system", "content": system}] if system else []
    messages += conversation(SCENES[scene], turns[0])
    messages += [{"role": ("user", "assistant")[index % 2], "content": turns[index]} for index in range(1, len(turns))]
    inputs = prepare(processor, messages)
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def messages_of(scene, *turns):
    """The same conversation for the client."""
    later = [{"role": ("user", "assistant")[index % 2], "content": turns[index]} for index in range(1, len(turns))]
    return [user_message(turns[0], URLS[scene]), *later]


def test_32_requests_at_a_time_get_the_answers_of_sessions(client, sessions):
    asked = [(scene, question) for _ in range(2) for question in QUESTIONS for scene in range(len(SCENES))]
    expected = [sessions[scene].ask(question, max_new_tokens=8) for scene, question in asked]
    # Those with a temperature of 0 are answered apart from the others.
    options = [{"max_tokens": 8} | ({"temperature": 0} if index % 3 else {}) for index in range(len(asked))]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda pair, given: answer(client, *messages_of(*pair), **given), asked, options))
    assert len(asked) == 32 and answers == expected


def test_a_second_question_about_the_same_photos_encodes_nothing(model, monkeypatch):
    calls = counted(monkeypatch, Spa3RModel, "forward")
    with running_server(model, tiny_processor()) as (address, _):
        for question in QUESTIONS:
            answer(client_of(address), *messages_of(0, question))
        assert len(calls) == 1


def test_two_conversations_go_on_in_turn(client, model):
    said = {0: [], 2: []}
    for question in QUESTIONS[:2]:
        for scene, turns in said.items():
            turns.append(question)
            turns.append(answer(client, *messages_of(scene, *turns)))
    for scene, turns in said.items():
        assert turns[1] == whole_answer(model, scene, turns[0])
        assert turns[3] == whole_answer(model, scene, *turns[:3])


def test_a_system_message_stands_before_the_scene(client, model):
    system = {"role": "system", "content": "Be brief."}
    expected = whole_answer(model, 0, "Why?", system="Be brief.")
    assert answer(client, system, *messages_of(0, "Why?")) == expected != whole_answer(model, 0, "Why?")


def test_a_stream_has_the_text_and_the_end_of_a_whole_answer(client):
    whole = ask(client, *messages_of(2, QUESTIONS[2]), max_tokens=20).choices[0]
    events = [event.choices[0] for event in ask(client, *messages_of(2, QUESTIONS[2]), max_tokens=20, stream=True)]
    assert len(events) > 1
    assert "".join(event.delta.content for event in events) == whole.message.content
    assert events[-1].finish_reason == whole.finish_reason


def test_a_stream_ends_with_the_usage_if_asked_to(client):
    usage = ask(client, *messages_of(0, "Why?")).usage
    *_, last = ask(client, *messages_of(0, "Why?"), stream=True, stream_options={"include_usage": True})
    assert not last.choices and last.usage == usage


def test_usage_counts_the_tokens_of_scene_and_text(client):
    inputs = prepare(tiny_processor(), conversation(SCENES[1], "Why?"))
    assert ask(client, *messages_of(1, "Why?")).usage.prompt_tokens == inputs["input_ids"].shape[1]


def test_an_answer_that_reaches_the_limit_says_so(client):
    choice = ask(client, *messages_of(0, "How many?"), max_tokens=1).choices[0]
    assert choice.finish_reason == "length"


def test_a_stop_text_ends_the_answer_before_it(client, sessions):
    whole = sessions[0].ask("How many?", max_new_tokens=12)
    stop = whole[3:5]
    choice = ask(client, *messages_of(0, "How many?"), max_tokens=12, stop=stop).choices[0]
    assert stop and (choice.message.content, choice.finish_reason) == (whole.split(stop)[0].rstrip(), "stop")


def test_sampling_from_the_likeliest_tokens_alone_gives_the_greedy_answer(client, sessions):
    expected = sessions[0].ask("Why?", max_new_tokens=6)
    assert answer(client, *messages_of(0, "Why?"), temperature=2, top_p=1e-9) == expected


def test_a_full_cache_keeps_the_scenes_used_last(model, sessions, monkeypatch):
    calls = counted(monkeypatch, Spa3RModel, "forward")
    with running_server(model, tiny_processor(), cache_bytes=1) as (address, _):
        for scene in (0, 1, 1, 0):
            expected = sessions[scene].ask("Why?", max_new_tokens=6)
            assert answer(client_of(address), *messages_of(scene, "Why?")) == expected
        assert len(calls) == 3 and metric(address, "spa3r_cached_scenes") == 1


def test_the_answer_of_a_client_that_left_is_not_continued(model, monkeypatch):
    allowed, calls = threading.Semaphore(1), []
    generate = model.generate

    def slow_generate(**options):
        allowed.acquire()
        calls.append(1)
        return generate(**options)

    with running_server(model, tiny_processor()) as (address, engine):
        asked, submit = [], engine.submit
        monkeypatch.setattr(model, "generate", slow_generate)
        monkeypatch.setattr(engine, "ends", set())
        monkeypatch.setattr(engine, "submit", lambda question: asked.append(question) or submit(question))
        try:
            stream = ask(client_of(address), *messages_of(0, "Why?"), max_tokens=64, stream=True)
            next(iter(stream))
            (question,) = asked
            stream.close()
            until(lambda: question.is_cancelled)
        finally:
            # The server stops only when its engine does.
            allowed.release(100)
        until(lambda: metric(address, "spa3r_running_questions") == 0)
    assert len(calls) <= 2 and question.num_answered < 64


def test_clients_that_send_or_read_slowly_keep_nobody_waiting(server, client):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, port)) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        unread = ask(client, *messages_of(1, "Why?"), stream=True)
        assert answer(client, *messages_of(0, "Why?")) == answer(client, *messages_of(0, "Why?"))
        unread.close()


def test_the_model_is_listed_under_its_name(client):
    assert [model.id for model in client.models.list()] == [NAME] == [client.models.retrieve(NAME).id]


def test_metrics_count_requests_scenes_and_tokens(model):
    with running_server(model, tiny_processor()) as (address, _):
        num_tokens = sum(ask(client_of(address), *messages_of(0, "Why?")).usage.completion_tokens for _ in range(3))
        counts = {
            name: metric(address, f"spa3r_{name}_total") for name in ("scenes_encoded", "scene_hits", "answer_tokens")
        }
        assert counts == {"scenes_encoded": 1, "scene_hits": 2, "answer_tokens": num_tokens}
        assert metric(address, 'spa3r_requests_total{status="200"}') == 3


def test_a_server_that_stops_completes_its_answers_first(model, sessions, monkeypatch):
    is_asked, may_answer = threading.Event(), threading.Event()
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **options: is_asked.set() or may_answer.wait() and generate(**options)
    )
    with ThreadPoolExecutor(1) as pool:
        with running_server(model, tiny_processor()) as (address, _):
            pending = pool.submit(answer, client_of(address), *messages_of(0, "Why?"))
            is_asked.wait(600)
            threading.Timer(0.3, may_answer.set).start()
        monkeypatch.undo()
        assert pending.result() == sessions[0].ask("Why?", max_new_tokens=6)
    with pytest.raises(openai.APIConnectionError):
        client_of(address).models.list()
