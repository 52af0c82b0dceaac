"""Instruction tuning that is killed, fills the disk or loses its loss: what remains, and how it resumes."""

import json
import re
import resource
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from killed_run import half_written
from pyarrow import parquet
from ready_processes import ReadyProcesses
from safetensors.torch import load_file
from tiny_instructions import command_line, trainer_of, write_instructions
from tiny_spa3_vlm import tiny_config, tiny_model, tiny_processor
from transformers import TrainerCallback
from two_processes import ready_on_cpu

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.trainers.integrations.cli import main
from spa3r.trainers.runs.errors import NotWrittenError
from spa3r.trainers.runs.resume import is_complete, last_complete_checkpoint
from spa3r.trainers.tuning.sft import build_trainer, check_run, parse_arguments, run

# An epoch takes 13 batches in seven steps, the last of a single batch, so checkpoints lie within epochs.
NUM_RECORDS = 26
OPTIONS = {
    "max_steps": 20,
    "gradient_accumulation_steps": 2,
    "save_steps": 2,
    "save_total_limit": 2,
    "logging_steps": 3,
}
# On two processes an epoch takes four steps.
OPTIONS_OF_TWO = OPTIONS | {"max_steps": 15, "save_steps": 3, "logging_steps": 2}


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    return write_instructions(tmp_path_factory.mktemp("instructions") / "set", NUM_RECORDS)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """A model with dropout, whose bits depend on the state of the random generator."""
    folder = tmp_path_factory.mktemp("vlm")
    vlm_config = tiny_config().vlm_config.to_dict()
    vlm_config["text_config"]["attention_dropout"] = 0.1
    tiny_model(vlm_config=vlm_config).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@dataclass
class Run:
    """A run in its own folder, which can be started and ended repeatedly."""

    processes: ReadyProcesses
    vlm: Path
    instructions: Path
    folder: Path
    options: dict

    def start(self, max_file_size=None, kill=None, **options):
        log = self.folder.with_name(f"{self.folder.name}_{len(list(self.folder.parent.glob('*.log')))}.log")
        arguments = ["sft", *command_line(self.vlm, self.instructions, self.folder, **(self.options | options))]
        self.process = self.processes.start(arguments, log, max_file_size, kill)
        return self

    def finish(self, status=0):
        assert self.process.wait() == status, self.log.read_text()
        return self

    def run_until_killed(self, step, number, **options):
        """Run until it is killed at a write after a checkpoint; see `killed_run`."""
        self.start(kill=(self.checkpoint(step), number), **options).finish(-signal.SIGKILL)

    @property
    def log(self):
        return self.process.log

    def checkpoint(self, step=None):
        return self.folder / f"checkpoint-{self.options['max_steps'] if step is None else step}"

    def losses(self):
        history = json.loads((self.checkpoint() / "trainer_state.json").read_text())["log_history"]
        return {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry}

    def weights(self):
        return load_file(self.folder / "model" / "model.safetensors")

    def optimizer(self):
        moments = torch.load(self.checkpoint() / "optimizer.pt", weights_only=True)["state"]
        return {(index, name): tensor for index, state in moments.items() for name, tensor in state.items()}


def are_equal(tensors, expected):
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


@dataclass
class Interruptions:
    """What happened to a run."""

    run: Run
    half_written: str
    last_before_half_written: str
    log_after_half_written: str
    status_on_full_disk: int


@pytest.fixture(scope="module")
def whole_and_interrupted(vlm, instructions, tmp_path_factory):
    """An uninterrupted run without workers, and one that is killed with workers, killed while it saves, stopped by a
    full disk, and then resumed with workers until it ends."""
    folder = tmp_path_factory.mktemp("one_process")
    with ready_on_cpu(1, folder / "process") as process:
        whole, run = (Run(process, vlm, instructions, folder / name, OPTIONS) for name in ("whole", "interrupted"))
        whole.start()
        run.run_until_killed(step=4, number=5, dataloader_num_workers=2)
        run.run_until_killed(step=6, number=-2)
        interrupted, last = half_written(run.folder).name, last_complete_checkpoint(run.folder).name
        # Smaller than the weights.
        status = run.start(max_file_size=400_000).process.wait()
        log = run.log.read_text()
        run.start(dataloader_num_workers=2).finish()
        return whole.finish(), Interruptions(run, interrupted, last, log, status)


@pytest.fixture(scope="module")
def two_processes(vlm, instructions, tmp_path_factory):
    """An uninterrupted run of two processes, and one that is killed and resumed."""
    folder = tmp_path_factory.mktemp("two_processes")
    with ready_on_cpu(2, folder / "processes") as processes:
        whole, run = (Run(processes, vlm, instructions, folder / name, OPTIONS_OF_TWO) for name in ("whole", "killed"))
        whole.start()
        run.run_until_killed(step=6, number=5)
        return run.start().finish(), whole.finish()


@pytest.fixture
def whole(whole_and_interrupted):
    return whole_and_interrupted[0]


@pytest.fixture
def interrupted(whole_and_interrupted):
    return whole_and_interrupted[1]


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(whole, interrupted):
    assert are_equal(interrupted.run.weights(), whole.weights())


def test_an_interrupted_run_ends_with_the_optimizer_of_an_uninterrupted_one(whole, interrupted):
    assert are_equal(interrupted.run.optimizer(), whole.optimizer())


def test_an_interrupted_run_logs_the_losses_of_an_uninterrupted_one(whole, interrupted):
    # Those of steps 2 and 4 are of one and two steps: there is a log with each checkpoint.
    assert {2, 3, 4, 6, 8, 9} < whole.losses().keys()
    assert interrupted.run.losses() == whole.losses()


def test_a_half_written_checkpoint_is_named_and_skipped(interrupted):
    log = interrupted.log_after_half_written
    folder = interrupted.run.folder
    assert str(folder / interrupted.half_written) in log
    assert f"Continuing from {folder / interrupted.last_before_half_written}." in log


def test_a_full_disk_ends_the_run_with_one_sentence(interrupted):
    assert interrupted.status_on_full_disk == 1
    folder, last = interrupted.run.folder, interrupted.last_before_half_written
    step = int(last.split("-")[1]) + OPTIONS["save_steps"]
    sentence = rf"^spa3r sft: {folder}/checkpoint-{step} .*File too large.* {folder}/{last}\b.*"
    assert re.search(sentence, interrupted.log_after_half_written, flags=re.MULTILINE)
    assert "Traceback" not in interrupted.log_after_half_written


def test_a_killed_run_of_two_processes_ends_with_the_bits_of_an_uninterrupted_one(two_processes):
    killed, whole = two_processes
    assert f"Continuing from {killed.folder}" in killed.log.read_text()
    assert are_equal(killed.weights(), whole.weights()) and are_equal(killed.optimizer(), whole.optimizer())
    assert killed.losses() == whole.losses()


def build_and_check(vlm, instructions, folder, **options):
    data_args, args, model_args = parse_arguments(command_line(vlm, instructions, folder, **(OPTIONS | options)))
    check_run(build_trainer(data_args, args, model_args), data_args, model_args)


def test_another_number_of_processes_is_refused(two_processes, vlm, instructions):
    run, _ = two_processes
    with pytest.raises(ValueError, match="`world_size` was 2, is 1"):
        build_and_check(vlm, instructions, run.folder, **run.options)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 5e-4}, "`learning_rate` was 0.001, is 0.0005"),
        ({"per_device_train_batch_size": 1}, "`per_device_train_batch_size` was 2, is 1"),
        ({"attn_implementation": "eager"}, "`model.attn_implementation` was None, is eager"),
        ({"seed": 1}, "`seed` was 42, is 1"),
    ],
)
def test_other_settings_are_refused(changes, named, whole, vlm, instructions):
    with pytest.raises(ValueError, match=named):
        build_and_check(vlm, instructions, whole.folder, **changes)


def test_another_precision_of_the_launch_file_is_refused(whole, vlm, instructions, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="`bf16` was False, is True"):
        build_and_check(vlm, instructions, whole.folder)


def test_other_records_in_the_same_folder_are_refused(whole, vlm, instructions, tmp_path):
    shutil.copytree(instructions, tmp_path / "set")
    shutil.copytree(whole.folder, tmp_path / "run")
    settings = json.loads((whole.folder / "run.json").read_text()) | {"instructions": [str(tmp_path / "set")]}
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    build_and_check(vlm, tmp_path / "set", tmp_path / "run")
    file = tmp_path / "set" / "data" / "00000.parquet"
    table = parquet.read_table(file)
    parquet.write_table(table.take(list(reversed(range(len(table))))), file)
    with pytest.raises(ValueError, match="`training_records.sha256`"):
        build_and_check(vlm, tmp_path / "set", tmp_path / "run")


def test_settings_that_decide_no_bit_may_change(whole, vlm, instructions):
    changes = {"save_steps": 5, "logging_steps": 1, "save_total_limit": 4, "dataloader_num_workers": 1}
    build_and_check(vlm, instructions, whole.folder, **changes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"save_total_limit": 1}, "`save_total_limit`"),
        ({"save_only_model": "true"}, "`save_only_model`"),
        ({"ignore_data_skip": "true"}, "`ignore_data_skip`"),
        (
            {"dataloader_persistent_workers": "true", "dataloader_num_workers": 1},
            "`dataloader_persistent_workers`",
        ),
        ({"resume_from_checkpoint": "checkpoint-7"}, "`checkpoint-7`"),
    ],
)
def test_a_run_that_could_not_resume_exactly_is_refused(options, named, vlm, instructions, tmp_path):
    with pytest.raises(ValueError, match=named):
        build_and_check(vlm, instructions, tmp_path / "run", **options)


def test_a_run_that_was_killed_after_its_last_checkpoint_takes_no_further_step(whole, vlm, instructions, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    run(trainer_of(vlm, instructions, tmp_path / "run", **OPTIONS), [])
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-20"
    assert are_equal(load_file(tmp_path / "run" / "model" / "model.safetensors"), whole.weights())


class SaveEachStep(TrainerCallback):
    """Record the last complete checkpoint after old ones are deleted and before the new one is marked."""

    def __init__(self):
        self.last = []

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        assert not is_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self.last.append(last_complete_checkpoint(args.output_dir).name)


def test_old_checkpoints_are_deleted_only_while_a_complete_one_is_left(whole, vlm, instructions, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "run")
    # As if killed while it saved; this checkpoint is not the next one to be written.
    (tmp_path / "run" / "checkpoint-20" / "complete.json").unlink()
    trainer = trainer_of(vlm, instructions, tmp_path / "run", **OPTIONS)
    save_each_step = SaveEachStep()
    trainer.callback_handler.callbacks.insert(0, save_each_step)
    run(trainer, [])
    assert save_each_step.last == ["checkpoint-18", "checkpoint-19"]


@pytest.mark.parametrize("file", ["optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_each_file_that_does_not_fit_ends_the_run_with_one_sentence(file, vlm, instructions, tmp_path):
    class FillDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                (tmp_path / "checkpoint-2").mkdir()
                (tmp_path / "checkpoint-2" / file).symlink_to("/dev/full")

    trainer = trainer_of(vlm, instructions, tmp_path, FillDisk())
    with pytest.raises(NotWrittenError, match="checkpoint-2 .*checkpoint-1") as error:
        run(trainer, [])
    assert "\n" not in str(error.value)


def test_a_final_model_that_does_not_fit_leaves_the_one_before_it(whole, vlm, instructions, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "run")
    trainer = trainer_of(vlm, instructions, tmp_path / "run", **OPTIONS)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard_limit))
    try:
        with pytest.raises(NotWrittenError, match="run/model .*checkpoint-20"):
            run(trainer, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard_limit, hard_limit))
    assert are_equal(load_file(tmp_path / "run" / "model" / "model.safetensors"), whole.weights())


class LoseGradient(TrainerCallback):
    """Make the gradient NaN from the second step, one step before the loss."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            model.lm_head.weight.register_hook(lambda gradient: gradient * torch.nan)


@pytest.mark.parametrize(
    ("save_steps", "named"),
    [(1, "step 2 .*`grad_norm` = nan.*checkpoint-1"), (4, "step 4 .*`loss` = nan")],
)
def test_weights_that_are_lost_between_two_logs_are_not_saved(save_steps, named, vlm, instructions, tmp_path):
    options = {"logging_steps": 100, "save_steps": save_steps}
    trainer = trainer_of(vlm, instructions, tmp_path, LoseGradient(), **options)
    with pytest.raises(FloatingPointError, match=named):
        run(trainer, [])


def test_a_non_finite_loss_ends_the_command_with_one_sentence(vlm, instructions, tmp_path):
    model = Spa3VLMForConditionalGeneration.from_pretrained(vlm)
    torch.nn.init.constant_(model.model.language_model.norm.weight, 3e38)  # finite, unlike the logits
    model.save_pretrained(tmp_path / "vlm")
    tiny_processor().save_pretrained(tmp_path / "vlm")
    with pytest.raises(SystemExit, match="^spa3r sft: .*step 1 .*`loss` = nan"):
        main(["sft", *command_line(tmp_path / "vlm", instructions, tmp_path / "run")])


def test_a_run_with_dropout_in_low_rank_layers_resumes_to_the_same_bits(vlm, instructions, tmp_path):
    targets = r"model\.vlm\.language_model\..*\.(q_proj|v_proj)"
    options = OPTIONS | {"max_steps": 4, "use_peft": "true", "lora_target_modules": targets, "lora_dropout": 0.5}
    run(trainer_of(vlm, instructions, tmp_path / "whole", **options), [])
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoint-4")
    run(trainer_of(vlm, instructions, tmp_path / "killed", **options), [])
    adapters = [tmp_path / name / "checkpoint-4" / "adapter_model.safetensors" for name in ("killed", "whole")]
    assert are_equal(*(load_file(file) for file in adapters))
