"""Benchmark a model: `python benchmark.py --model DIR --benchmark vsi-bench --data DIR`. See `--help`."""

from spa3r.trainers.benchmark import main

if __name__ == "__main__":
    main()
