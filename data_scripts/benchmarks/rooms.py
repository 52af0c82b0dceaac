"""The benchmark of rendered rooms, scored by VSI-Bench's protocols."""

__all__ = ["OPTIONS_FILE"]

# Beside rendered rooms: the options that they were made with.
OPTIONS_FILE = "rooms.json"
