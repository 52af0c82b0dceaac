"""Instruction-tune Spa3-VLM: `accelerate launch sft.py --config spa3-vlm-vsi590k`. See `--help`."""

import sys

from spa3r.trainers.integrations.cli import main

if __name__ == "__main__":
    main(["sft", *sys.argv[1:]])
