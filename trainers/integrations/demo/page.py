"""The layout of the page, and what happens when somebody uses it."""

import functools
import html
import inspect
import logging
import time
from collections.abc import Callable, Iterator

import gradio as gr

from .drawing import CSS, draw_latents, draw_look, draw_photos
from .looking import agreement, camera_move
from .rooms import RenderedRoom, as_prompt, read_photos
from .scenes import Scene, Studio, read_upload

logger = logging.getLogger(__name__)

TITLE = "Spa3R: what the latent of a scene knows"
NO_SCENE = "No scene is encoded yet: choose a room, or drop photos and press Encode."
HEAT_LABEL = "Heat map: the attention of the answer, or the queries of one latent"
LOOKED = "Each image token's share of the answer's attention to images; the brightest is the greatest."
QUERIED = "How strongly each image token queried this latent in the adapter; the same for every question."
READING = """
**How to read it.** *From the latent*: the decoder gets the latents and the red camera, and no photo. Its features
are shown as colours, one projection (PCA) for the whole scene, so that equal colours mean alike in all pictures;
depth comes from a probe. *Truth*: the rendered picture, and what the teachers find in it. *Heat map*: the language
model's attention from the answer to image tokens; the strip of latents is that attention times the adapter's, from
image tokens to latents. Attention shows where information could come from, not that it changed the answer.
"""
# Fonts that are there without asking a server for them.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
# Start, least and greatest of the sliders.
SLIDERS = {
    "right": (0.0, -3.0, 3.0, 0.05),
    "up": (0.0, -1.0, 1.0, 0.05),
    "forward": (0.0, -3.0, 3.0, 0.05),
    "turn right (°)": (0.0, -180.0, 180.0, 1.0),
    "tilt up (°)": (0.0, -60.0, 60.0, 1.0),
}
# Of the 3-D viewer: degrees around the room, and from straight above.
VIEWPOINT = (60, 40)
SLIDER_ROWS = (("right", "up", "forward"), ("turn right (°)", "tilt up (°)"))


def as_notice(function: Callable) -> Callable:
    """Tell whatever goes wrong in a sentence, and leave the page as it is.

    Tracebacks of what nobody foresaw go to the terminal alone.
    """

    @functools.wraps(function)
    def streaming(*arguments):
        try:
            yield from function(*arguments)
        except Exception as error:
            yield tell(error)

    @functools.wraps(function)
    def single(*arguments):
        try:
            return function(*arguments)
        except Exception as error:
            return tell(error)

    # A generator's last values are sent twice, after which Gradio's 3-D viewer may stay empty.
    return streaming if inspect.isgeneratorfunction(function) else single


def tell(error: Exception) -> dict:
    """Show an error for some seconds; returns what changes nothing on the page."""
    sentence = " ".join(str(error).split())
    if not isinstance(error, ValueError | OSError | ImportError):
        logger.error("A request failed.", exc_info=error)
        sentence = f"The program failed ({type(error).__name__}); the terminal of its server says where."
    # An error of Gradio's would cover each part of the page with a label.
    gr.Warning(html.escape(sentence), title="Not done")
    return gr.skip()


class Page:
    """
    The page as a Gradio app.

    Args:
        studio (`Studio`): The models.
        rooms (`list[RenderedRoom]`): Rooms to choose from; the first one is shown at once.
        subtitle (`str`): What models these are, in Markdown.
    """

    def __init__(self, studio: Studio, rooms: list[RenderedRoom], subtitle: str):
        self.studio = studio
        self.rooms = {room.name: room for room in rooms}
        self.subtitle = subtitle
        self._encode_room = functools.cache(
            lambda name: studio.encode(read_photos(self.rooms[name]), self.rooms[name])
        )

    def build(self) -> gr.Blocks:
        """Lay out the page."""
        has_field = self.studio.spa3r is not None
        with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
            scene, shown = gr.State(time_to_live=3600), gr.State()
            gr.Markdown(f"# {TITLE}\n{self.subtitle}")
            with gr.Row():
                with gr.Column(scale=5, min_width=420):
                    room, files, encode = self._source()
                    photos = gr.HTML(elem_id="photos")
                    heat = gr.Radio(
                        ["none"],
                        value="none",
                        label=HEAT_LABEL,
                        visible=False,
                        elem_id="heat",
                    )
                    latents = gr.HTML(elem_id="latents")
                    chat = gr.Chatbot(label="Questions about the scene", height=300, elem_id="chat", buttons=[])
                    question = gr.Textbox(
                        placeholder="How many doors are in this room?",
                        show_label=False,
                        submit_btn="Ask",
                        elem_id="question",
                    )
                    known = gr.Dataset(
                        components=[question],
                        samples=[],
                        label="Questions whose true answer is known",
                        visible=False,
                        elem_id="known",
                    )
                    in_words = gr.Checkbox(
                        True, label="Ask in the words of VSI-Bench, in which the models were trained"
                    )
                with gr.Column(scale=6, min_width=460):
                    if has_field:
                        viewer = gr.Model3D(
                            label="Cameras and points by VGGT; the first camera is orange",
                            height=380,
                            clear_color=(0.97, 0.97, 0.98, 1),
                            interactive=False,
                            elem_id="viewer",
                        )
                        download = gr.DownloadButton("Download GLB", size="sm")
                        gr.Markdown(
                            "### Look from elsewhere\nThe sliders move a camera from the first photo; lengths are "
                            "meters in rendered rooms, else VGGT's unit."
                        )
                        sliders = self._sliders()
                        look = gr.HTML(elem_id="look")
                        gr.Markdown(READING)
            once = {"concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private"}
            shows = [scene, photos, heat, latents, chat, known] + (
                [viewer, download, look, *sliders] if has_field else []
            )
            blocks.load(as_notice(self.choose_room), room, shows, **once)
            room.input(as_notice(self.choose_room), room, shows, **once)
            encode.click(as_notice(self.encode_upload), files, [room, *shows], **once)
            for event, asked in ((question.submit, question), (known.click, known)):
                event(
                    as_notice(self.ask),
                    [scene, asked, in_words, chat],
                    [chat, question, shown, photos, heat, latents],
                    **once,
                )
            heat.input(as_notice(self.show_heat), [scene, shown, heat], photos, **once)
            if has_field:
                gr.on(
                    [slider.change for slider in sliders],
                    as_notice(self.look),
                    [scene, *sliders],
                    look,
                    trigger_mode="always_last",
                    show_progress="hidden",
                    **once,
                )
        return blocks

    def _source(self) -> tuple:
        names = list(self.rooms)
        room = gr.Radio(names, value=names[0], label="Rendered rooms that the models have never seen", elem_id="room")
        limits = self.studio.limits
        with gr.Accordion("Your own photos or video", open=False):
            files = gr.File(
                label=f"Up to {limits.photos} photos of one place, the reference first, or a video of at most "
                f"{limits.seconds:.0f} s; {limits.megapixels:.0f} megapixels each",
                file_count="multiple",
                elem_id="files",
                height=140,
            )
            encode = gr.Button("Encode", elem_id="encode")
        return room, files, encode

    def _sliders(self) -> list[gr.Slider]:
        sliders = []
        for names in SLIDER_ROWS:
            with gr.Row():
                for name in names:
                    value, low, high, step = SLIDERS[name]
                    sliders.append(gr.Slider(low, high, value, step=step, label=name, min_width=150))
        return sliders

    def choose_room(self, name: str) -> tuple:
        """Show a rendered room."""
        if name not in self.rooms:
            raise ValueError(f"There is no room `{name}`: choose one of {', '.join(self.rooms)}.")
        return self._show(self._encode_room(name))

    def encode_upload(self, paths: list[str] | None) -> tuple:
        """Encode uploaded photos, or a video; no room is chosen then."""
        photos = read_upload(paths or [], self.studio.limits, self.studio.processor.num_frames)
        return None, *self._show(self.studio.encode(photos))

    def _show(self, scene: Scene) -> tuple:
        """The values of all parts of the page that change with the scene."""
        questions = [[known.text] for known in scene.room.questions] if scene.room else []
        parts = (
            scene,
            draw_photos(scene.photos),
            gr.Radio(visible=False),
            "",
            [],
            gr.Dataset(samples=questions, sample_labels=[text for (text,) in questions], visible=bool(questions)),
        )
        if self.studio.spa3r is None:
            return parts
        if scene.field is None:
            return (*parts, None, gr.DownloadButton(value=None), "", *(value[0] for value in SLIDERS.values()))
        path, spread = scene.glb
        start = [value[0] for value in SLIDERS.values()]
        seen = gr.Model3D(value=path, camera_position=(*VIEWPOINT, 1.05 * spread))
        return (*parts, seen, gr.DownloadButton(value=path), self.look(scene, *start), *start)

    def ask(self, scene: Scene | None, asked: str | list[str], in_words: bool, chat: list) -> Iterator[tuple]:
        """Answer a question piece by piece, then show where the answer looked."""
        text = (asked[0] if isinstance(asked, list) else asked).strip()
        if scene is None:
            raise ValueError(NO_SCENE)
        limit = self.studio.limits.question_characters
        if not text or len(text) > limit:
            raise ValueError(f"The question has {len(text)} characters: write 1 to {limit}.")
        known = next((known for known in scene.room.questions if known.text == text), None) if scene.room else None
        prompt = (known.prompt if known else as_prompt(text)) if in_words else text
        chat = [*chat, {"role": "user", "content": text}]
        rest = (gr.skip(),) * 4
        start = time.perf_counter()
        for said in self.studio.answer(scene, prompt):
            yield [*chat, {"role": "assistant", "content": said.text}], "", *rest
        seconds = time.perf_counter() - start
        truth = f"true answer: {known.answer} · " if known else ""
        told = f"**{said.text}**" if said.text else "*(nothing)*"
        chat = [*chat, {"role": "assistant", "content": f"{told}\n\n<small>{truth}{seconds:.1f} s</small>"}]
        if not said.tokens:
            yield chat, "", *rest
            return
        attention = self.studio.attention(scene, prompt, said.tokens)
        maps = {"answer": attention.image_tokens}
        if attention.latents is not None:
            for latent in attention.latents.topk(3).indices.tolist() if scene.adapter is not None else ():
                maps[f"latent {latent}"] = scene.adapter[:, latent].cpu()
        first = next(iter(maps))
        yield (
            chat,
            "",
            maps,
            draw_photos(scene.photos, self.studio.heat(scene, maps[first]), LOOKED),
            gr.Radio(choices=["none", *maps], value=first, visible=True),
            "" if attention.latents is None else draw_latents(attention.latents),
        )

    def show_heat(self, scene: Scene | None, maps: dict | None, chosen: str) -> str:
        """The photos with another heat map, or none."""
        if scene is None or not maps:
            raise ValueError(NO_SCENE)
        if chosen not in maps:
            return draw_photos(scene.photos)
        return draw_photos(
            scene.photos, self.studio.heat(scene, maps[chosen]), LOOKED if chosen == "answer" else QUERIED
        )

    def look(self, scene: Scene | None, right: float, up: float, forward: float, turn: float, tilt: float) -> str:
        """What the latent predicts from a place, and the truth there."""
        if scene is None or scene.field is None:
            raise ValueError(NO_SCENE)
        move = camera_move(right, up, forward, turn, tilt)
        predicted, picture, true = self.studio.look(scene, move)
        return draw_look(scene.field, move, predicted, picture, true, agreement(predicted, true) if true else {})


def launch(page: Page, queue_size: int, **options) -> gr.Blocks:
    """Start the server of a page, and return while it runs; `options` are those of Gradio's `launch`."""
    blocks = page.build().queue(max_size=queue_size)
    blocks.launch(css=CSS, theme=THEME, footer_links=[], prevent_thread_lock=True, **options)
    return blocks
