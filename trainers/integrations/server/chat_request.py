"""The requests of OpenAI's chat API, as far as a scene model can answer them; anything else is refused by name."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from ....modeling_spa3r.spa3_vlm.processing_spa3_vlm import SPECIAL_TOKENS
from ...benchmark.runner import GREEDY
from .errors import ApiError


class Strict(BaseModel):
    """Refuses fields that it does not have, and values of another type, such as `true` for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _chosen_by(field: str, classes: dict[str, str]) -> Discriminator:
    """Choose the class of an object by one of its fields, so that errors are those of this class alone."""
    names = " or ".join(", ".join(f"`{name}`" for name in classes).rsplit(", ", 1))

    def choose(value):
        name = value.get(field) if isinstance(value, dict) else getattr(value, field, None)
        return classes.get(name) if isinstance(name, str) else None

    message = f"must be an object whose `{field}` is {names}"
    return Discriminator(choose, custom_error_type="unknown_object", custom_error_message=message)


class TextPart(Strict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """Where an image is. `detail` changes nothing: all images are resized alike."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    """A photo of the scene."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[
    Annotated[TextPart, Tag("TextPart")] | Annotated[ImagePart, Tag("ImagePart")],
    _chosen_by("type", {"text": "TextPart", "image_url": "ImagePart"}),
]


class SystemMessage(Strict):
    """Instructions before the scene."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(Strict):
    """A question; the first of a conversation has the photos, too."""

    role: Literal["user"]
    content: str | list[Part]


class AssistantMessage(Strict):
    """An earlier answer, with the fields that the `openai` client gives it."""

    role: Literal["assistant"]
    content: str | list[TextPart]
    refusal: None = None
    annotations: list | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: None = None


Message = Annotated[
    Annotated[SystemMessage, Tag("SystemMessage")]
    | Annotated[UserMessage, Tag("UserMessage")]
    | Annotated[AssistantMessage, Tag("AssistantMessage")],
    _chosen_by(
        "role",
        {
            "system": "SystemMessage",
            "developer": "SystemMessage",
            "user": "UserMessage",
            "assistant": "AssistantMessage",
        },
    ),
]


class StreamOptions(Strict):
    """What a stream ends with."""

    include_usage: bool = False


class ResponseFormat(Strict):
    """Only plain text."""

    type: Literal["text"]


class ChatRequest(Strict):
    """A request to `/v1/chat/completions`."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | list[str] | None = Field(None, max_length=4)
    user: str | None = None
    # With these values they change nothing.
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    response_format: ResponseFormat | None = None

    @property
    def options(self) -> tuple:
        """Options of `generate`, as pairs; without a temperature those of the checkpoint stay."""
        if self.temperature is None and self.top_p is None:
            return ()
        if self.temperature == 0:
            return tuple(GREEDY.items())
        temperature, top_p = 1.0 if self.temperature is None else self.temperature, self.top_p or 1.0
        return (("do_sample", True), ("temperature", float(temperature)), ("top_p", float(top_p)), ("top_k", 0))

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in stops if text]

    @property
    def image_urls(self) -> list[str]:
        """Where the images are."""
        parts = [part for message in self.messages if message.role == "user" for part in _parts(message)]
        return [part.image_url.url for part in parts if part.type == "image_url"]

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[0]
        return _text(first) if first.role in ("system", "developer") else None

    @property
    def turns(self) -> list[dict]:
        """The conversation without its system message; its first turn is the first question."""
        messages = self.messages if self.system is None else self.messages[1:]
        return [{"role": message.role, "content": _text(message)} for message in messages]


def parse_request(body: bytes, max_tokens: int) -> tuple[ChatRequest, int]:
    """Read and check a request.

    Args:
        body (`bytes`): The request, JSON.
        max_tokens (`int`): Most tokens of an answer here.

    Returns:
        `tuple[ChatRequest, int]`: The request, and the most tokens of its answer.

    Raises:
        ApiError: With status 400; names the field.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from error
    _check_turns(request)
    limits = {"max_tokens": request.max_tokens, "max_completion_tokens": request.max_completion_tokens}
    for name, value in limits.items():
        if value is not None and value > max_tokens:
            raise ApiError(400, f"`{name}` is {value}, but answers here have at most {max_tokens} tokens.", name)
    return request, request.max_completion_tokens or request.max_tokens or max_tokens


def _check_turns(request: ChatRequest):
    roles = [turn["role"] for turn in request.turns]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise ApiError(
            400,
            f"`messages` have the roles {', '.join(message.role for message in request.messages)}; send a system "
            "message or none, then user and assistant in turn, and the question last.",
            "messages",
        )
    first = len(request.messages) - len(roles)
    for index, message in enumerate(request.messages):
        if index != first and any(part.type == "image_url" for part in _parts(message)):
            raise ApiError(
                400,
                f"`messages.{index}` has images, but all images of a scene belong in the first user message, "
                f"`messages.{first}`, because the scene is encoded from all of them; move them there.",
                f"messages.{index}",
            )
        if used := [token for token in SPECIAL_TOKENS if token in _text(message)]:
            raise ApiError(
                400, f"`messages.{index}` has the text `{used[0]}`, which marks images; leave it out.", "messages"
            )
    if not request.image_urls:
        raise ApiError(400, "`messages` have no image; send photos of the scene with the first question.", "messages")
    for index, message in enumerate(request.messages):
        if message.role == "user" and not _text(message).strip():
            raise ApiError(
                400, f"`messages.{index}` has no text; send a question about the scene.", f"messages.{index}"
            )


def _explain(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request."""
    first, *_ = sorted(error.errors(include_url=False), key=lambda each: -len(each["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not JSON: {first['ctx']['error']}.")
    place = _place(first["loc"], is_name=first["type"] == "extra_forbidden")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"`{place}` is not supported here; leave it out.", place)
    value = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    what = first["msg"].replace(" after validation", "")
    return ApiError(
        400, f"{f'`{place}`' if place else 'The body'}: {what[0].lower()}{what[1:]}{value}.", place or None
    )


def _place(location: tuple, is_name: bool) -> str:
    """The field of the request without classes and types, which pydantic adds; `is_name` keeps the last part."""
    *before, last = location or ("",)
    fields = [part for part in before if not _is_type(part)]
    if is_name or not _is_type(last):
        fields.append(last)
    return ".".join(str(part) for part in fields)


def _is_type(part: str | int) -> bool:
    return isinstance(part, str) and (part == "str" or "[" in part or part[:1].isupper())


def _parts(message: Message) -> list[TextPart | ImagePart]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content


def _text(message: Message) -> str:
    return "\n".join(part.text for part in _parts(message) if part.type == "text")
