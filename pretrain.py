"""Pre-train Spa3R: `accelerate launch pretrain.py --config spa3r-paper`. See `--help`."""

from spa3r.trainers.pretrain import main

if __name__ == "__main__":
    main()
