"""Benchmarks: one file for each, which holds all that is known about it."""

from .cv_bench import CV_BENCH
from .protocol import Benchmark, Protocol
from .revsi import REVSI
from .rooms import ROOMS
from .spar_bench import SPAR_BENCH
from .viewspatial_bench import VIEWSPATIAL_BENCH
from .vsi_bench import VSI_BENCH
from .vsi_super import VSI_SUPER

__all__ = ["BENCHMARKS", "Benchmark", "Protocol"]

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (VSI_BENCH, CV_BENCH, SPAR_BENCH, VIEWSPATIAL_BENCH, ROOMS, *REVSI, *VSI_SUPER)
}
