"""Ask Spa3-VLM about a scene: `python ask.py --model DIR --images *.jpg`. See `--help`."""

from spa3r.modeling_spa3r.ask import main

if __name__ == "__main__":
    main()
