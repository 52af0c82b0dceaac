"""Pre-train Spa3R: `accelerate launch pretrain.py --config spa3r-paper`. See `--help`."""

import sys

from spa3r.trainers.integrations.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
