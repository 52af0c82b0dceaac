"""Save and push the model that instruction tuning has made: a self-contained Spa3-VLM with its code and card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from trl import GRPOTrainer, SFTTrainer

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...modeling_spa3r.checkpoints.cards import Score, tuned_card, write_card
from ...modeling_spa3r.checkpoints.self_contained import add_code
from .instruction_data import split_source
from .lora import merge_lora
from .streaming import count_records

HOW = "supervised fine-tuning on the answers alone"


def save_tuned_model(
    trainer: SFTTrainer | GRPOTrainer,
    instructions: Sequence[str],
    folder: str,
    without_images: bool = False,
    how: str = HOW,
):
    """Write model, processor, code and card; every process must call this.

    LoRA layers are merged into the weights that they adapt. If these are sharded over processes, only the adapter is
    written, for peft to load.

    Args:
        trainer (`SFTTrainer` or `GRPOTrainer`): After training.
        instructions (`list[str]`): Instruction sets that it trained on; see `load_instructions`.
        folder (`str`): New folder to write.
        without_images (`bool`, *optional*, defaults to `False`): Whether it trained on their text alone.
        how (`str`, *optional*): How it was trained, for the card.
    """
    model, args = trainer.accelerator.unwrap_model(trainer.model), trainer.args
    # A tokenizer is saved with the padding of its last call, and a run that resumes at its end makes no call.
    trainer.processing_class.tokenizer.backend_tokenizer.no_padding()
    is_adapted = not isinstance(model, PreTrainedModel)
    is_sharded = any(hasattr(weight, "ds_id") or hasattr(weight, "device_mesh") for weight in model.parameters())
    if not is_adapted or is_sharded:
        trainer.save_model(folder, _internal_call=True)
    elif args.should_save:
        model = merge_lora(model)
        model.save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)
    if args.should_save:
        (Path(folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that only this run needs
    if args.should_save and not (is_adapted and is_sharded):
        add_code(folder)
        lines = [f"`{folder}`, weight {weight:g}" for folder, weight in map(split_source, instructions)]
        if without_images:
            lines = [f"{line}, the text alone without its images" for line in lines]
        num_records = count_records(trainer.train_dataset, instructions, args.seed)
        write_card(folder, _card(trainer, model.config, lines, is_adapted, num_records, how))


def _card(
    trainer: SFTTrainer | GRPOTrainer,
    config: Spa3VLMConfig,
    data: list[str],
    is_adapted: bool,
    num_records: int,
    how: str,
) -> dict[str, Any]:
    """Collect the facts for the card of a tuned model; it extends the card of the starting checkpoint."""
    args, state = trainer.args, trainer.state
    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    method = "LoRA layers of the language model" if is_adapted else "the language model"
    rates = f"learning rate {args.learning_rate:g}"
    if getattr(args, "muon_learning_rate", None) is not None:
        rates += f", {args.muon_learning_rate:g} for matrices by Muon"
    data = [
        *data,
        f"Trained by {how}: the adapter and {method}, with spatial encoder and "
        f"vision tower frozen; {num_records} records, {state.global_step} steps of {batch_size}, "
        f"{rates}.",
    ]
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    scores = [Score("Held-out instructions", "loss of the answers", f"{losses[-1]:.4f}")] if losses else []
    return tuned_card(trainer.hub_model_id or str(Path(args.output_dir) / "model"), config, data, scores)
