"""Instruction-tune Spa3-VLM: `accelerate launch sft.py --config configuration/recipes/...yaml`. See `--help`."""

from spa3r.trainers.sft import main

if __name__ == "__main__":
    main()
