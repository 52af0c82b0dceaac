"""How answers are scored: one module for each benchmark, with its named protocols."""

from .cv_bench import PROTOCOLS as CV_BENCH
from .protocol import Protocol
from .spar_bench import PROTOCOLS as SPAR_BENCH
from .viewspatial_bench import PROTOCOLS as VIEWSPATIAL_BENCH
from .vsi_bench import PROTOCOLS as VSI_BENCH

__all__ = ["BENCHMARKS", "Protocol"]

# The first protocol of a benchmark is its default.
BENCHMARKS: dict[str, dict[str, Protocol]] = {
    "vsi-bench": VSI_BENCH,
    "cv-bench": CV_BENCH,
    "spar-bench": SPAR_BENCH,
    "viewspatial-bench": VIEWSPATIAL_BENCH,
    "rooms": VSI_BENCH,
}
