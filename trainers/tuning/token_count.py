"""Keep the count of trained tokens over interruptions."""

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import SFTTrainer


class KeepTokenCount(TrainerCallback, ExportableState):
    """Write TRL's count of tokens into each checkpoint, and go on from it: TRL itself begins at zero again."""

    def __init__(self, trainer: SFTTrainer):
        self.trainer = trainer

    def state(self) -> dict:
        """What the Trainer stores in `trainer_state.json`."""
        # TRL logs this private count as `num_tokens`, and has no other access to it.
        return {"args": {}, "attributes": {"num_tokens": self.trainer._total_train_tokens}}

    def on_train_begin(self, args, state, control, **kwargs):
        stored = state.stateful_callbacks.get(type(self).__name__)
        if stored is not None:
            self.trainer._total_train_tokens = stored["attributes"]["num_tokens"]
