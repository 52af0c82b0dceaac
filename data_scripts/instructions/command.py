"""The command `spa3r convert-data SET`: one module for each published set."""

import sys
from collections.abc import Sequence

from . import llava_hound, spar, vlm3r, vsi590k

SETS = {"vsi590k": vsi590k, "spar": spar, "llava-hound": llava_hound, "vlm3r": vlm3r}


def main(arguments: Sequence[str] | None = None):
    """Run the converter that the first argument names."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] not in SETS:
        seen = f"got `{arguments[0]}`" if arguments else "none was given"
        sys.exit(f"spa3r convert-data: name the data set first, one of {', '.join(SETS)}; {seen}.")
    SETS[arguments[0]].main(arguments[1:])
