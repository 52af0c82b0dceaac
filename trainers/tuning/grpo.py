"""Training of Spa3-VLM by rewards with TRL's GRPOTrainer: what `spa3r grpo` does."""

import sys
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments, set_seed
from trl import GRPOConfig, GRPOTrainer, ModelConfig

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ...data_scripts.benchmarks.vsi_bench import VSI_BENCH
from ...data_scripts.common.locks import only_run_in
from ...modeling_spa3r.checkpoints.loading import load_config, load_processor, require_checkpoint
from ..runs.distributed import end_run
from ..runs.publish import make_repository
from ..runs.recipes import parse_options
from ..runs.resume import MarkCompleteCheckpoints, StopOnNonFiniteLoss, checkpoint_to_resume
from ..runs.settings import flatten, training_settings
from .grpo_command import GRPOOptions, QuestionArguments
from .instruction_data import digest_instructions
from .lora import check_frozen, load_to_tune, lora_config, train_in_float32
from .questions import load_questions, open_prompts, repeat_in_random_order, split_type
from .rewards import make_rewards
from .run import check_tuning, tune_and_publish
from .scene_cache import SceneLatents
from .scene_carrier import SceneCarrier


@dataclass
class GRPOArguments(GRPOOptions, GRPOConfig):
    """TRL's arguments, with `GRPOOptions`."""

    def __getstate__(self):
        # The Trainer pickles its arguments beside each checkpoint and publishes them with `push_to_hub`.
        return self.__dict__ | {"hub_token": None}


def parse_arguments(arguments: list[str] | None = None) -> tuple[QuestionArguments, GRPOArguments, ModelConfig]:
    """Read the command line, over the recipe that it names, over the defaults.

    Raises:
        ValueError: If there is no such recipe, or a key or an option is unknown.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    dataclasses = (QuestionArguments, GRPOArguments, ModelConfig)
    return tuple(parse_options("grpo", arguments, dataclasses)[0])


def _check_arguments(data_args: QuestionArguments, args: GRPOArguments, model_args: ModelConfig):
    if model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing: give a Spa3-VLM, a folder or a Hub name.")
    if not data_args.instructions:
        raise ValueError("`instructions` is empty: give `--instructions FOLDER`.")
    is_zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    if is_zero3 or args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            f"`spa3r grpo` does not shard weights, got {'ZeRO-3' if is_zero3 else 'FSDP'}: processes encode different "
            "scenes at different times; launch with plain data parallelism or ZeRO-2."
        )
    for name in ("use_vllm", "use_transformers_continuous_batching"):
        if getattr(args, name):
            raise ValueError(f"`{name}` would answer without the scene, got {getattr(args, name)}; leave it out.")
    weights = {weight for _, weight in map(split_type, data_args.question_types)}
    if weights - {1.0} and args.scale_rewards == "group":
        raise ValueError(
            f"`question_types` gives weights, got {data_args.question_types}, but `scale_rewards` group divides them "
            "out again; set it to none or batch."
        )
    rounds = args.steps_per_generation * args.num_iterations
    batches = int(args.save_steps) * args.gradient_accumulation_steps
    if args.save_strategy == "steps" and batches % rounds:
        raise ValueError(
            f"`save_steps` {args.save_steps} ends within the {rounds} batches that share their answers, which no "
            f"checkpoint keeps; make `save_steps` times `gradient_accumulation_steps` a multiple of {rounds}."
        )


def build_trainer(data_args: QuestionArguments, args: GRPOArguments, model_args: ModelConfig) -> GRPOTrainer:
    """Build the trainer; wrong input is refused here, before training."""
    _check_arguments(data_args, args, model_args)
    protocol = VSI_BENCH.protocol(data_args.protocol)
    require_checkpoint(model_args.model_name_or_path)
    config = load_config(Spa3VLMConfig, model_args.model_name_or_path)  # refuses a model of another kind
    carries_code = "AutoModelForImageTextToText" in config.to_dict().get("auto_map", {})
    if args.beta and not model_args.use_peft and not carries_code:
        raise ValueError(
            f"`beta` is {args.beta:g}, but TRL cannot load the reference from `{model_args.model_name_or_path}`, "
            "which does not carry its code; save it with `spa3r convert` or `spa3r sft`, or train LoRA layers."
        )
    make_repository(args)
    set_seed(args.seed)
    processor = load_processor(model_args.model_name_or_path)
    weights = dict(map(split_type, data_args.question_types))
    with args.main_process_first(desc="instruction sets"):  # the others read its cache
        has_keys = data_args.scene_latents is not None
        questions = load_questions(data_args.instructions, list(weights), args.seed, with_keys=has_keys)
    model = load_to_tune(model_args, args.bf16)
    stored = None
    if has_keys:
        stored = SceneLatents(data_args.scene_latents, model, processor)
        stored.check_complete(questions["scene_key"])
    rewards = make_rewards(protocol, weights)
    args.reward_weights, args.shuffle_dataset, args.remove_unused_columns = (
        [1.0, 1.0, data_args.format_weight],
        False,
        False,
    )
    args.logging_nan_inf_filter = False
    trainer = GRPOTrainer(
        model,
        reward_funcs=rewards,
        args=args,
        train_dataset=_order(questions, args).with_transform(partial(open_prompts, stored=stored)),
        processing_class=SceneCarrier.of(processor, model, stored),
        peft_config=lora_config(model_args, model),
        callbacks=[StopOnNonFiniteLoss()],
    )
    check_frozen(trainer.model)
    if getattr(model, "is_quantized", False):
        train_in_float32(trainer.model)
    trainer.add_callback(MarkCompleteCheckpoints(trainer.accelerator))
    return trainer


def _order(questions, args: GRPOArguments):
    """The questions in the order of the run, as one pass."""
    per_round = args.generation_batch_size // args.num_generations
    if len(questions) < per_round:
        raise ValueError(
            f"`instructions` hold {len(questions)} questions, but {per_round} are answered together: give more, or "
            "lower `per_device_train_batch_size`."
        )
    num_passes = int(args.num_train_epochs)
    if args.max_steps > 0:
        rounds = args.max_steps * args.gradient_accumulation_steps / (args.steps_per_generation * args.num_iterations)
        num_passes = int(rounds * per_round / len(questions)) + 2
    args.num_train_epochs = 1
    return repeat_in_random_order(questions, num_passes, args.seed)


def settings_of_run(trainer: GRPOTrainer, data_args: QuestionArguments, model_args: ModelConfig) -> dict[str, Any]:
    """Settings that decide the final weights of a run, by flat names such as `model.lora_r`."""
    args = trainer.args
    names = "per_device_train_batch_size num_train_epochs adam_beta1 adam_beta2 adam_epsilon optim_args".split()
    ignored = {each.name for each in fields(TrainingArguments)}
    # Only what differs from the defaults, so that a new option of the library does not make another run.
    own = {each.name: getattr(args, each.name) for each in fields(GRPOConfig) if each.name not in ignored}
    own = {name: value for name, value in own.items() if not name.startswith(("log_", "vllm_", "num_completions"))}
    defaults, own_defaults = asdict(ModelConfig()), {each.name: each.default for each in fields(GRPOArguments)}
    settings = training_settings(args, names) | {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "questions": asdict(data_args),
        "training_records": {
            "number": len(trainer.train_dataset),
            "sha256": digest_instructions(data_args.instructions),
        },
        "grpo": {name: value for name, value in own.items() if value != own_defaults[name]},
        "model": {name: value for name, value in asdict(model_args).items() if value != defaults[name]},
    }
    return flatten(settings)


def check_run(trainer: GRPOTrainer, data_args: QuestionArguments, model_args: ModelConfig):
    """See `check_tuning`."""
    check_tuning(trainer.args, settings_of_run(trainer, data_args, model_args))


def run(trainer: GRPOTrainer, instructions: list[str]):
    """See `tune_and_publish`."""
    how = f"rewards of its own answers (GRPO), {trainer.args.num_generations} to each question"
    tune_and_publish(trainer, instructions, checkpoint_to_resume(trainer.args), how=how)


def main(arguments: list[str] | None = None):
    """Run `spa3r grpo`."""
    data_args, args, model_args = parse_arguments(arguments)
    with only_run_in(args.output_dir, args.process_index == 0):
        trainer = build_trainer(data_args, args, model_args)
        check_run(trainer, data_args, model_args)
        run(trainer, data_args.instructions)
        end_run(trainer)
