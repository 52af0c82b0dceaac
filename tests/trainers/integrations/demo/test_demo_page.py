"""The page of `spa3r demo`: in a real browser, as somebody would use it, and its parts without one."""

import io
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from urllib.request import urlopen

import pytest
from PIL import Image

from spa3r import SceneSession

gradio = pytest.importorskip("gradio", reason="Gradio is not installed: the extra `demo`")
trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed: the extra `demo`")
from spa3r.trainers.integrations.demo.page import Page, as_notice, launch  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
# Milliseconds; a page that is slow because others use the machine is no failure.
PATIENCE = 300_000


@pytest.fixture(scope="module")
def address(studio, rooms):
    limited = replace(studio, limits=replace(studio.limits, photos=3))
    blocks = launch(Page(limited, rooms, "For the tests."), queue_size=8, server_name="127.0.0.1", quiet=True)
    yield blocks.local_url
    blocks.close()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra `test`")
    if CHROMIUM is None:
        pytest.skip("There is no Chromium on this machine: apt-get install chromium.")
    with api.sync_playwright() as playwright:
        # Containers run as root, where Chromium's sandbox refuses to start; it opens a page of this machine alone.
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def opened(browser, address, with_3d=False):
    page = browser.new_page(viewport={"width": 1440, "height": 1200})
    page.set_default_timeout(PATIENCE)
    if not with_3d:
        # Without a GPU, the viewer would draw on the CPU all the time.
        page.route("**/*.glb", lambda route: route.abort())
    page.goto(address)
    page.wait_for_selector("#look img")
    yield page
    page.close()


@pytest.fixture
def page(browser, address):
    with opened(browser, address) as page:
        yield page


@pytest.fixture
def page_with_3d(browser, address):
    with opened(browser, address, with_3d=True) as page:
        yield page


def wait_for_change(page, selector, before):
    """Wait until the first image there is another one, and return it."""
    script = "([selector, before]) => { const i = document.querySelector(selector); return i && i.src != before; }"
    page.wait_for_function(script, arg=[selector, before])
    return page.locator(selector).first.get_attribute("src")


def test_somebody_chooses_a_room_asks_and_looks_from_elsewhere(page, studio, rooms):
    first = page.locator("#photos img").first.get_attribute("src")
    page.get_by_label(rooms[1].name).check()
    wait_for_change(page, "#photos img", first)
    assert page.locator("#photos img").count() == 12

    known = rooms[1].questions[0]
    page.locator("#known").get_by_text(known.text).click()
    told = page.locator("#chat .bot").filter(has_text="true answer")
    told.wait_for()
    session = SceneSession(studio.model, studio.processor, rooms[1].photos)
    answer = session.ask(known.prompt, max_new_tokens=studio.limits.new_tokens)
    assert told.inner_text().split()[0] == answer and known.answer in told.inner_text()
    page.wait_for_selector("#photos img.heat")
    assert page.locator("#photos img.heat").count() == 12

    truth, predicted = "#look img[alt='true picture']", "#look img[alt='geometry features']"
    here, there = (page.locator(image).first.get_attribute("src") for image in (truth, predicted))
    turn = page.get_by_label("number input for turn right (°)")
    turn.fill("90")
    turn.press("Enter")
    wait_for_change(page, truth, here)
    wait_for_change(page, predicted, there)


def test_the_3d_view_shows_the_file_that_can_be_downloaded(page_with_3d):
    page_with_3d.wait_for_selector("#viewer canvas")
    link = page_with_3d.locator("#viewer a").get_attribute("href")
    with urlopen(link) as response:
        scene = trimesh.load(io.BytesIO(response.read()), file_type="glb")
    assert len(scene.geometry) == 13  # the points, and a camera for each photo


def test_too_many_photos_are_refused_by_a_notice_that_leaves_the_page_as_it_is(page, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        Image.new("RGB", (112, 84)).save(path)
    page.get_by_text("Your own photos or video").click()
    page.locator("#files input[type=file]").set_input_files(paths)
    page.locator("#files").get_by_text("3.png").or_(
        page.locator("#files").get_by_text("3", exact=True)
    ).first.wait_for()
    page.locator("#encode").click()
    notice = page.get_by_text(re.compile("4 photos, but at most 3"))
    notice.first.wait_for()
    shown = page.locator("body").inner_text()
    assert "Traceback" not in shown and "Error" not in shown
    assert page.locator("#photos img").count() == 12


def test_uploaded_photos_are_encoded_and_have_no_truth(page, rooms):
    before = page.locator("#photos img").first.get_attribute("src")
    page.get_by_text("Your own photos or video").click()
    page.locator("#files input[type=file]").set_input_files([str(photo) for photo in rooms[0].photos[4:7]])
    page.locator("#files").get_by_text(re.compile("6")).first.wait_for()
    page.locator("#encode").click()
    wait_for_change(page, "#photos img", before)
    assert page.locator("#photos img").count() == 3
    page.wait_for_function("() => !document.querySelector(\"#look img[alt='true picture']\")")
    assert not page.get_by_label(rooms[0].name).is_checked()


def test_a_model_without_a_decoder_still_answers(studio, rooms):
    page = Page(replace(studio, spa3r=None), rooms, "")
    page.build()
    scene, *_ = page.choose_room(rooms[0].name)
    *_, (chat, *_) = page.ask(scene, rooms[0].questions[0].text, True, [])
    assert scene.field is None and rooms[0].questions[0].answer in chat[-1]["content"]


def test_a_failure_that_nobody_foresaw_shows_no_detail_of_the_program(caplog, monkeypatch):
    told = []
    monkeypatch.setattr(gradio, "Warning", lambda sentence, **options: told.append(sentence))

    def fail():
        raise KeyError("/secret/path")

    as_notice(fail)()
    assert "KeyError" in told[0] and "secret" not in told[0] and "secret" in caplog.text


@pytest.mark.parametrize(("question", "named"), [("", "0 characters"), ("x" * 1001, "1001 characters")])
def test_a_question_of_an_odd_length_is_refused_by_a_sentence(question, named, studio, rooms):
    page = Page(studio, rooms, "")
    scene, *_ = page.choose_room(rooms[0].name)
    with pytest.raises(ValueError, match=named):
        list(page.ask(scene, question, True, []))
