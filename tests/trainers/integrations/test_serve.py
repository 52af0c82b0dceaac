"""`spa3r serve` through the `openai` client, beside `SceneSession`, which answers the same questions."""

import pytest

pytest.importorskip("openai", reason="needs the package openai")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")

from serving import answer, client_of, data_url, running_server, user
from tiny_spa3_vlm import answering_model, photo, tiny_processor

from spa3r import SceneSession

SCENES = [[photo(0), photo(1)], [photo(2, 40, 40)], [photo(3), photo(4, 48, 64), photo(5)]]
URLS = [[data_url(image) for image in scene] for scene in SCENES]


@pytest.fixture(scope="module")
def model():
    return answering_model()


@pytest.fixture(scope="module")
def server(model):
    with running_server(model, tiny_processor()) as (address, engine):
        yield address, engine


@pytest.fixture
def client(server):
    return client_of(server[0])


def test_an_answer_is_that_of_a_session(client, model):
    expected = SceneSession(model, tiny_processor(), SCENES[0]).ask("How many?", max_new_tokens=6)
    assert answer(client, user("How many?", URLS[0])) == expected
