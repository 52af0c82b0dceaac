"""TRL's trainers that rebuild their inputs: the scene reaches each of their forwards, or they are refused."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from refusals import refused
from tiny_bases import assembled, enlarge, processor_of
from tiny_spa3_vlm import CONVERSATIONS, batch_of, conversation, photo, prepare, tiny_model, tiny_processor
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from spa3r import Spa3VLMForConditionalGeneration
from spa3r.modeling_spa3r.checkpoints.self_contained import add_code
from spa3r.modeling_spa3r.spa3_vlm.scene_in_pixels import carry_features
from spa3r.trainers.tuning.scene_cache import GEOMETRY
from spa3r.trainers.tuning.scene_carrier import SceneCarrier

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
PROMPTS = [
    {"prompt": [{"role": "user", "content": "How many?"}], "images": [photo(0), photo(1)]},
    {"prompt": [{"role": "user", "content": "Where is the door?"}], "images": [photo(2)]},
]
NUM_TOKENS, PATCH_SIZE = 6, 3 * 2 * 14**2
OPTIONS = {
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": NUM_TOKENS,
    "max_steps": 1,
    "learning_rate": 0.0,
    "temperature": 1.0,
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 1,
}


class Recorder:
    """What a trainer's model sees, and the log-probabilities that follow: of rollouts, and of forwards that score."""

    def __init__(self):
        self.steps, self.completions, self.scored = [], [], []

    def reward(self, completion_ids, **_):
        self.completions = completion_ids
        return [float(sum(tokens) % 7) for tokens in completion_ids]

    def watch(self, model):
        model.register_forward_hook(self._record, with_kwargs=True)

    def _record(self, model, args, inputs, outputs):
        if "fused_lm_head" in inputs:
            completions = inputs["input_ids"][:, -NUM_TOKENS:]
            log_probs = outputs.log_probs[:, -NUM_TOKENS:].detach()
            self.scored.append((inputs, {tuple(row.tolist()): log_probs[i] for i, row in enumerate(completions)}))
        else:
            self.steps.append(outputs.logits[:, -1].log_softmax(-1))

    def rollouts(self):
        """Log-probabilities of each completion at the time when its tokens were drawn."""
        tokens = torch.tensor(self.completions)
        drawn = torch.stack(self.steps, 1).gather(-1, tokens[..., None])[..., 0]
        return {tuple(row): drawn[index] for index, row in enumerate(self.completions)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, from which TRL loads the reference."""
    folder = tmp_path_factory.mktemp("vlm")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    add_code(folder)
    return folder


def rl_trainer(kind, folder, output, peft_config=None, processor=None, **options):
    """A trainer of the library, and the recorder of its model."""
    trainer_class, config_class = TRAINERS[kind]
    model, recorder = Spa3VLMForConditionalGeneration.from_pretrained(folder), Recorder()
    model.freeze_encoders()
    recorder.watch(model)
    trainer = trainer_class(
        model,
        reward_funcs=recorder.reward,
        args=config_class(str(output), **OPTIONS | options),
        train_dataset=Dataset.from_list(PROMPTS),
        processing_class=SceneCarrier.of(processor or tiny_processor(), model),
        peft_config=peft_config,
    )
    return trainer, recorder


def log_probs_of(model, inputs):
    """Log-probabilities of each completion in a forward of these inputs."""
    return model(**inputs).log_probs[:, -NUM_TOKENS:]


def assert_same(given, expected, **tolerance):
    assert given.keys() == expected.keys()
    for completion, log_probs in given.items():
        torch.testing.assert_close(log_probs, expected[completion], **tolerance)


@pytest.fixture(scope="module", params=TRAINERS)
def trained(request, folder, tmp_path_factory):
    trainer, recorder = rl_trainer(request.param, folder, tmp_path_factory.mktemp("run"), beta=0.1)
    trainer.train()
    return trainer, recorder


def test_the_loss_scores_completions_as_the_rollout_drew_them(trained):
    _, recorder = trained
    assert_same(recorder.scored[-1][1], recorder.rollouts(), rtol=0, atol=1e-4)


@torch.no_grad()
def test_without_the_scene_the_loss_would_score_another_policy(trained):
    trainer, recorder = trained
    inputs, _ = recorder.scored[-1]
    model = trainer.model.eval()
    patches = {"pixel_values": inputs["pixel_values"][:, :PATCH_SIZE]}
    assert (log_probs_of(model, inputs) - log_probs_of(model, inputs | patches)).abs().max() > 0.01


def test_the_divergence_from_the_reference_is_zero_at_the_first_step(trained):
    assert trained[0].state.log_history[0]["kl"] == 0


def test_the_divergence_from_the_base_of_an_adapter_is_zero_at_the_first_step(folder, tmp_path):
    adapter = LoraConfig(target_modules=r".*language_model\..*\.(q_proj|v_proj)")
    trainer, _ = rl_trainer("grpo", folder, tmp_path, adapter, beta=0.1)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0


def test_importance_ratios_are_exactly_one_at_the_first_step(folder, tmp_path):
    # Only with several passes over a batch does GRPO score completions before the loss does.
    trainer, recorder = rl_trainer("grpo", folder, tmp_path, num_iterations=2)
    trainer.train()
    (_, before), (_, loss) = recorder.scored
    assert_same(loss, before, rtol=0, atol=0)


@pytest.fixture(scope="module")
def trained_on_qwen3(tmp_path_factory):
    """The trainer and the recorder of one step of GRPO on another base."""
    folder, model = tmp_path_factory.mktemp("qwen3"), assembled("qwen3_vl")
    enlarge(model.model.fusion, 1.0)
    model.save_pretrained(folder)
    trainer, recorder = rl_trainer("grpo", folder, folder / "run", processor=processor_of(model), num_iterations=2)
    trainer.train()
    return trainer, recorder


def test_on_qwen3_the_loss_scores_completions_as_the_rollout_drew_them(trained_on_qwen3):
    _, recorder = trained_on_qwen3
    assert_same(recorder.scored[-1][1], recorder.rollouts(), rtol=0, atol=1e-4)


def test_on_qwen3_importance_ratios_are_exactly_one_at_the_first_step(trained_on_qwen3):
    (_, before), (_, loss) = trained_on_qwen3[1].scored
    assert_same(loss, before, rtol=0, atol=0)


@torch.no_grad()
def test_on_qwen3_the_loss_would_score_another_policy_without_the_scene(trained_on_qwen3):
    trainer, recorder = trained_on_qwen3
    inputs, _ = recorder.scored[-1]
    model = trainer.model.eval()
    vision = model.config.vlm_config.vision_config
    patch_size = 3 * vision.temporal_patch_size * vision.patch_size**2
    patches = {"pixel_values": inputs["pixel_values"][:, :patch_size]}
    assert (log_probs_of(model, inputs) - log_probs_of(model, inputs | patches)).abs().max() > 0.01


def test_grpo_with_the_plain_processor_is_refused_because_it_would_lose_the_scene(tmp_path):
    trainer = GRPOTrainer(
        tiny_model(),
        reward_funcs=Recorder().reward,
        args=GRPOConfig(str(tmp_path), **OPTIONS),
        train_dataset=Dataset.from_list(PROMPTS),
        processing_class=tiny_processor(),
    )
    with refused("`pixel_values_geometry`", "`SceneCarrier`"):
        trainer.train()


@torch.no_grad()
def test_preferences_are_scored_with_the_scene_by_the_plain_processor(tmp_path):
    answers = ["two", "four"]
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in answers)
    preferences = [prompt | {"chosen": chosen, "rejected": rejected} for prompt in PROMPTS]
    model = tiny_model()
    model.freeze_encoders()
    options = {name: value for name, value in OPTIONS.items() if name not in ("num_generations", "temperature")}
    del options["max_completion_length"]
    trainer = DPOTrainer(
        model,
        ref_model=tiny_model(),
        args=DPOConfig(str(tmp_path), **options, max_length=None),
        train_dataset=Dataset.from_list(preferences),
        processing_class=tiny_processor(),
    )
    with torch.enable_grad():
        trainer.train()
    logged = trainer.state.log_history[0]
    expected = [sum(log_prob_of(prompt, text) for prompt in PROMPTS) / len(PROMPTS) for text in answers]
    assert [logged["logps/chosen"], logged["logps/rejected"]] == pytest.approx(expected, abs=1e-3)
    assert logged["loss"] == pytest.approx(math.log(2), abs=1e-4)


def log_prob_of(prompt, text):
    """Log-probability of an answer and its end, given the scene."""
    (message,) = conversation(prompt["images"], prompt["prompt"][0]["content"])
    processor, model = tiny_processor(), tiny_model()
    inputs = prepare(processor, [message])
    end = processor.tokenizer(f"{text}<|im_end|>\n", return_tensors="pt").input_ids
    whole = torch.cat([inputs["input_ids"], end], 1)
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(end)], 1)
    inputs |= {"input_ids": whole, "mm_token_type_ids": types, "attention_mask": torch.ones_like(whole)}
    log_probs = model(**inputs).logits[:, -end.shape[1] - 1 : -1].log_softmax(-1)
    return log_probs.gather(-1, end[..., None]).sum().item()


def carrier_of(model):
    return SceneCarrier.of(tiny_processor(num_appended_tokens=model.config.num_appended_tokens), model)


@torch.no_grad()
@pytest.mark.parametrize("variant", [{}, {"fusion": "append"}, {"fusion": "none"}], ids=str)
def test_a_carried_scene_gives_the_logits_and_answers_of_the_scene(variant):
    model = tiny_model(**variant)
    carried, plain = prepare(carrier_of(model), CONVERSATIONS), batch_of(model, CONVERSATIONS)
    assert set(carried) == {"input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"}
    torch.testing.assert_close(model(**carried).logits, model(**plain).logits, rtol=0, atol=1e-4)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    assert torch.equal(model.generate(**carried, **options), model.generate(**plain, **options))


@torch.no_grad()
@pytest.mark.parametrize("variant", [{}, {"fusion": "append"}, {"fusion": "none"}], ids=str)
def test_carried_features_of_the_vision_tower_give_the_logits_and_answers_of_the_images(variant):
    model = tiny_model(**variant)
    plain = batch_of(model, CONVERSATIONS)
    grids, num_views = plain["image_grid_thw"], plain["num_views"]
    num_tokens = [
        int(images.sum()) // 4 for images in grids.prod(-1).split([count for count in num_views.tolist() if count])
    ]
    features = model.model.encode_images(plain["pixel_values"], grids).split(num_tokens)
    has_scene = model.model.fusion is not None
    latents = model.encode_scene(*(plain[name] for name in (*GEOMETRY, "num_views"))) if has_scene else []
    carried = {name: plain[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")}
    carried["pixel_values"] = carry_features(features, grids, num_views, list(latents))
    torch.testing.assert_close(model(**carried).logits, model(**plain).logits, rtol=0, atol=1e-4)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    assert torch.equal(model.generate(**carried, **options), model.generate(**plain, **options))


@pytest.mark.parametrize("size", range(8))
def test_carried_features_never_have_the_width_of_patches_of_two_frames(size):
    carried = carry_features([torch.ones(4, size)], torch.tensor([[1, 2, 2]]), torch.tensor([1]), [torch.ones(1, 1)])
    assert carried.shape[1] % 2 == 1


def test_a_scene_is_encoded_once_for_all_questions_and_calls(monkeypatch):
    model = tiny_model()
    calls, encode = [], model.encode_scene
    monkeypatch.setattr(model, "encode_scene", lambda *inputs: calls.append(1) or encode(*inputs))
    carrier, images = carrier_of(model), [photo(0), photo(1)]
    for _ in range(2):
        prepare(carrier, [conversation(images, "Where?"), conversation(images, "How many?")])
    assert len(calls) == 1


def test_the_processor_that_is_saved_is_the_plain_one(tmp_path):
    carrier_of(tiny_model()).save_pretrained(tmp_path / "carrier")
    tiny_processor().save_pretrained(tmp_path / "plain")
    files = [path.name for path in (tmp_path / "plain").iterdir()]
    texts = [[(tmp_path / folder / name).read_text() for name in files] for folder in ("carrier", "plain")]
    assert "processor_config.json" in files and texts[0] == texts[1]


def test_latents_whose_number_grows_with_the_views_are_refused():
    with refused("`spatial_representation='vggt'`"):
        carrier_of(tiny_model(spatial_representation="vggt"))


WRONG = {
    "columns of another model": (lambda batch: {"pixel_values": batch["pixel_values"][:, : PATCH_SIZE + 1]}, "1177"),
    "text of another row": (lambda batch: {"mm_token_type_ids": batch["mm_token_type_ids"].roll(1, 0)}, "Row 0 has 6"),
    "no types of tokens": (lambda batch: {"mm_token_type_ids": None}, "`mm_token_type_ids`"),
    "the scene twice": (lambda batch: {"spatial_latents": torch.zeros(3, 8, 32)}, "`spatial_latents`"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("method", ["forward", "generate"])
def test_a_carried_scene_that_does_not_fit_is_refused(wrong, method):
    model = tiny_model()
    batch = prepare(carrier_of(model), CONVERSATIONS)
    change, named = WRONG[wrong]
    with refused(named):
        getattr(model, method)(**batch | change(batch))
