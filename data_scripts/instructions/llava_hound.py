"""LLaVA-Hound, a part of LLaVA-Video-178K, in the form that VG-LLM distributes.

    spa3r convert-data llava-hound --input llava_hound_64k.json --media-root media --no-exclude \\
        --output data/llava-hound

A record has `id`, `conversations` with the placeholder `<video>`, `data_source`, and `video`: a folder of frames,
llava_hound/frames/<id>, or a video file. The data set has no question types; all rows are `open_ended`.
"""

from typing import Any

from .rows import RawSample

QUESTION_TYPE = "open_ended"


def read_record(record: dict[str, Any]) -> RawSample:
    return RawSample.from_record(record, question_type=record.get("question_type") or QUESTION_TYPE)
