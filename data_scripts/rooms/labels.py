"""The categories of what the views of a room show, as `label-filt/*.png` numbers them."""

from .furniture import FURNITURE

_LAMPS = {"floor lamp", "table lamp"}
# A pixel's value is its category's place in this list, plus 1; 0 is unknown, as in ScanNet.
LABELS = (
    *("floor", "ceiling", "wall"),
    *sorted({"lamp", *FURNITURE} - _LAMPS),
    *("door", "picture", "window"),
)
# Categories that are not objects.
STRUCTURE = frozenset({"floor", "ceiling", "wall"})


def label_of(category: str) -> int:
    """The value of a category's pixels."""
    return LABELS.index(category) + 1
