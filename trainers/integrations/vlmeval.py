"""Spa3-VLM as a model of VLMEvalKit, which runs it on its own benchmarks.

    python -m spa3r.trainers.integrations.vlmeval checkpoints/spa3-vlm-4b --data BLINK --work-dir runs/vlmeval

All after the checkpoint goes to VLMEvalKit's own `run`. Images stand where a message has them. If they all come first,
they are encoded once for all questions about them that follow each other. A plain Qwen2.5-VL is asked in the same way.
Only this module of the package needs VLMEvalKit.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

try:
    from vlmeval.vlm.base import BaseModel
except ModuleNotFoundError as error:
    raise ImportError(
        f"Spa3-VLM in VLMEvalKit needs VLMEvalKit, of which `{error.name}` is missing: install ms-vlmeval in an "
        "environment of its own, see docs/benchmarks.md."
    ) from error

from ...modeling_spa3r.spa3_vlm.scene_session import SceneSession
from ..benchmark.conversations import answer_conversations
from ..benchmark.models import load_benchmark_model
from ..runs.devices import usable_device

GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


class Spa3VLM(BaseModel):
    """Answers the messages of VLMEvalKit.

    Args:
        model_path (`str`): Folder or Hub name of a Spa3-VLM or a plain Qwen2.5-VL.
        max_new_tokens (`int`, *optional*, defaults to 2048): Longest answer, as of VLMEvalKit's own Qwen2.5-VL.
        dtype (`str`, *optional*): Type of the weights; by default as in the checkpoint.
        attn_implementation (`str`, *optional*): Attention; by default the library's choice.
        device (`str`, *optional*): Device; by default an accelerator if there is one.
        use_vllm (`bool`, *optional*, defaults to `False`): VLMEvalKit gives it by the model's name; must be `False`.
    """

    INTERLEAVE = True
    VIDEO_LLM = False  # VLMEvalKit then chooses the frames of a video, and gives them as images
    allowed_types = ["text", "image"]

    def __init__(
        self,
        model_path: str,
        max_new_tokens: int = 2048,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        device: str | None = None,
        use_vllm: bool = False,
    ):
        super().__init__()
        if use_vllm:
            raise ValueError(f"`use_vllm` would answer without the scene, got {use_vllm}; leave out --use-vllm.")
        device = usable_device(device)
        self.model, self.processor = load_benchmark_model(model_path, device, dtype, attn_implementation)
        self.options = GREEDY | {"max_new_tokens": max_new_tokens}
        self._paths, self._session = None, None

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Answer a message.

        Args:
            message (`list[dict[str, str]]`): Parts of `type` text or image, each with a `value`: a text, or a path.
            dataset (`str`, *optional*): Not used; every benchmark is asked with its own prompt.
        """
        kinds = [part["type"] for part in message]
        paths = tuple(part["value"] for part in message if part["type"] == "image")
        if paths and kinds == ["image"] * len(paths) + ["text"]:
            if paths != self._paths:
                self._paths, self._session = paths, SceneSession(self.model, self.processor, list(paths))
            tokens = self._session.generate([message[-1]["value"]], **self.options)
        else:
            content = [{"type": part["type"], part["type"]: part["value"]} for part in message]
            conversation = [{"role": "user", "content": content}]
            tokens = answer_conversations(self.model, self.processor, [conversation], **self.options)
        (answer,) = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return answer.strip()


def main(arguments: Sequence[str] | None = None):
    """Register a checkpoint under the name of its folder, and run VLMEvalKit on it."""
    from vlmeval.config import supported_VLM
    from vlmeval.run import main as run

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit(
            f"The first argument must be a checkpoint, got {arguments[:1]}; options of VLMEvalKit follow."
        )
    checkpoint, *options = arguments
    name = Path(checkpoint).name
    supported_VLM[name] = partial(Spa3VLM, model_path=checkpoint)
    sys.argv = [sys.argv[0], "--model", name, *options]  # which VLMEvalKit reads
    run()


if __name__ == "__main__":
    main()
