"""Benchmark a model: `python benchmark.py --model DIR --benchmark vsi-bench --data DIR`. See `--help`."""

import sys

from spa3r.trainers.integrations.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
