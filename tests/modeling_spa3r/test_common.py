"""What transformers and accelerate expect of every model, for all of ours."""

import functools

import accelerate
import pytest
import torch
from tiny_spa3_vlm import TEXT, batch_of, tiny_model, without
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainingArguments

from spa3r import Spa3RForPreTraining, Spa3RModel, VGGTForGeometry, VGGTModel
from spa3r.configuration import Spa3RConfig, VGGTConfig, load_preset


def views(batch_size: int = 2, num_views: int = 3) -> torch.Tensor:
    return torch.rand(batch_size, num_views, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def spa3r_config() -> Spa3RConfig:
    return Spa3RConfig(**load_preset("spa3r-tiny"))


# For each class: how to build its configuration, its inputs, and the numbers of its hidden states and attentions.
MODELS = {
    VGGTModel: (lambda: spa3r_config().vggt_config, {}, lambda config: config.num_blocks),
    VGGTForGeometry: (lambda: spa3r_config().vggt_config, {}, lambda config: config.num_blocks),
    Spa3RModel: (spa3r_config, {}, lambda config: config.num_encoder_layers),
    Spa3RForPreTraining: (
        spa3r_config,
        {"num_context_views": 2},
        lambda config: config.num_encoder_layers + config.num_decoder_layers,
    ),
}
all_models = pytest.mark.parametrize("model_class", MODELS)


@functools.cache
def built(model_class):
    torch.manual_seed(0)
    return model_class(MODELS[model_class][0]()).eval()


def fresh(model_class):
    """A model of its own, with the weights of `built`."""
    model = model_class(MODELS[model_class][0]()).eval()
    model.load_state_dict(built(model_class).state_dict())
    return model


@torch.no_grad()
def run(model, **options):
    return model(views(), **MODELS[type(model)][1], **options)


def configurations(model) -> list:
    """The configurations of ours, the model's and its parts'."""
    found = [module.config for module in model.modules() if hasattr(module, "config")]
    return [config for config in found if isinstance(config, (Spa3RConfig, VGGTConfig))]


@all_models
@pytest.mark.parametrize("by", ["argument", "configuration"])
def test_a_tuple_holds_the_outputs_in_order(model_class, by):
    model = fresh(model_class)
    expected = run(model).to_tuple()
    if by == "configuration":
        for config in configurations(model):
            config.return_dict = False
    output = run(model, **({"return_dict": False} if by == "argument" else {}))
    assert type(output) is tuple
    torch.testing.assert_close(tree_leaves(output), tree_leaves(expected), rtol=0, atol=0)


@all_models
@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
@pytest.mark.parametrize("by", ["argument", "configuration"])
def test_states_of_every_block_are_returned_on_request(model_class, name, by):
    model = fresh(model_class)
    model.set_attn_implementation("eager")
    if by == "configuration":
        setattr(model.config, name, True)
    output = run(model, **({name: True} if by == "argument" else {}))
    number = MODELS[model_class][2](model.config) + (name == "output_hidden_states")
    assert len(output[name.removeprefix("output_")]) == number


@all_models
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_an_offloaded_model_gives_the_same_output(model_class, place, tmp_path):
    model, device = fresh(model_class), torch.device("cpu")
    if place == "memory":
        accelerate.cpu_offload(model, execution_device=device)
    else:
        accelerate.disk_offload(model, tmp_path, execution_device=device)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    given, expected = run(model), run(built(model_class))
    torch.testing.assert_close(tree_leaves(given.to_tuple()), tree_leaves(expected.to_tuple()), atol=1e-6, rtol=1e-5)


def test_an_exported_model_takes_other_numbers_of_scenes_and_views():
    scenes, number = torch.export.Dim("scenes", max=64), torch.export.Dim("views", min=2, max=64)
    model = built(Spa3RModel)  # runs VGGT, too
    exported = torch.export.export(model, (views(),), dynamic_shapes={"pixel_values": {0: scenes, 1: number}})
    for shape in ((1, 2), (3, 5)):
        output, expected = exported.module()(views(*shape)), model(views(*shape))
        torch.testing.assert_close(tree_leaves(output)[0], expected[0], atol=1e-5, rtol=1e-5)


def test_untrained_cameras_are_finite():
    output = run(built(VGGTForGeometry))
    assert (output.pose_encodings[-1][..., 7:] == 0).any()  # or this shows nothing
    assert output.intrinsics.isfinite().all()


def test_a_trainer_evaluates_pretraining_without_names_of_labels(tmp_path):
    def collate(scenes):
        return {"pixel_values": torch.stack([scene["pixel_values"] for scene in scenes]), "num_context_views": 2}

    trainer = Trainer(
        built(Spa3RForPreTraining),
        TrainingArguments(tmp_path, use_cpu=True, report_to=[]),
        data_collator=collate,
        eval_dataset=[{"pixel_values": scene} for scene in views()],
    )
    expected = run(built(Spa3RForPreTraining)).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_pretraining_can_predict_without_losses():
    output = run(built(Spa3RForPreTraining), return_loss=False)
    assert output.loss is None and output.losses is None and output.predicted_features


@pytest.mark.parametrize("of", ["head", "base"])
def test_image_features_come_as_the_library_gives_them(of):
    model = tiny_model()
    model.set_attn_implementation("eager")
    images = without(batch_of(model), *TEXT)
    get = (model if of == "head" else model.model).get_image_features
    output = get(**images)
    assert {"last_hidden_state", "pooler_output"} == set(output)
    assert type(get(**images, return_dict=False)) is tuple
    states = get(**images, output_hidden_states=True, output_attentions=True)
    assert len(states.hidden_states) == len(states.attentions) + 1 == model.config.vision_config.depth + 1
