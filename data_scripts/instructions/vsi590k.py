"""VSI-590K: `vsi_590k.jsonl` of nyu-visionx/VSI-590K, and its media, unpacked.

    spa3r convert-data vsi590k --input vsi_590k.jsonl --media-root media --output data/vsi590k

A record has `conversations`, `question_type`, and either `video` or `image`. Its placeholder is always `<image>`; in a
record with a video, it stands for the video.
"""

from typing import Any

from .rows import RawSample


def read_record(record: dict[str, Any]) -> RawSample:
    return RawSample.from_record(record)
