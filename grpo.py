"""Train Spa3-VLM by rewards: `accelerate launch grpo.py --config spa3-vlm-4b-grpo`. See `--help`."""

import sys

from spa3r.trainers.integrations.cli import main

if __name__ == "__main__":
    main(["grpo", *sys.argv[1:]])
