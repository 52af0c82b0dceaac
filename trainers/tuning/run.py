"""Run a trainer of Spa3-VLM, as `spa3r sft` and `spa3r grpo` do: checked, trained, saved, published."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from trl import GRPOTrainer, SFTTrainer

from ...modeling_spa3r.checkpoints.self_contained import push_self_contained
from ..runs.distributed import start_workers_from_clean_server
from ..runs.publish import push_final_model, train_and_save
from ..runs.resume import checkpoint_to_resume
from ..runs.settings import check_resumable, check_same_run
from .save import save_tuned_model
from .scene_cache import SceneLatents


def check_tuning(args: TrainingArguments, settings: dict[str, Any]):
    """Refuse a run that could not resume exactly, or whose output folder holds another run.

    Args:
        args (`TrainingArguments`): Of the trainer.
        settings (`dict[str, Any]`): All that decides its final weights, by flat names.

    Raises:
        ValueError: In these cases, and if the named checkpoint to continue from is incomplete.
    """
    # Persistent workers draw from another state of the random generator when an epoch begins.
    check_resumable(args, ("save_only_model", "ignore_data_skip", "dataloader_persistent_workers"))
    checkpoint_to_resume(args)
    check_same_run(args.output_dir, settings, args.process_index == 0)


def tune_and_publish(
    trainer: SFTTrainer | GRPOTrainer, instructions: Sequence[str], checkpoint: Path | None, **about: Any
):
    """Train, save the self-contained model to `<output_dir>/model`, and push it where asked to.

    Args:
        trainer (`SFTTrainer` or `GRPOTrainer`): The trainer of the run.
        instructions (`list[str]`): Instruction sets that it trains on.
        checkpoint (`Path`, *optional*): The checkpoint to continue from.
        about (*optional*): Passed to `save_tuned_model`.
    """
    args = trainer.args
    start_workers_from_clean_server(args, SceneLatents.__module__)
    final = train_and_save(
        trainer, checkpoint, lambda folder: save_tuned_model(trainer, instructions, folder, **about)
    )
    trainer.accelerator.print(f"The model is in {final}.")
    publishing = {"private": args.hub_private_repo, "token": args.hub_token}
    push_final_model(trainer, lambda: push_self_contained(final, trainer.hub_model_id, **publishing))
