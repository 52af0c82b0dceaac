"""Ask Spa3-VLM about a scene: `python ask.py --model DIR --images *.jpg`. See `--help`."""

import sys

from spa3r.trainers.integrations.cli import main

if __name__ == "__main__":
    main(["ask", *sys.argv[1:]])
