"""`python -m spa3r VERB`, also for `accelerate launch -m spa3r VERB`."""

from .trainers.integrations.cli import main

if __name__ == "__main__":
    main()
