"""Compiled blocks: what they share, what stays as it was, and which models have any."""

import pytest
import torch
from tiny_spa3_vlm import tiny_model as tiny_vlm
from torch import nn

from spa3r import Spa3RForPreTraining, VGGTModel, compile_blocks
from spa3r.configuration import Spa3RConfig, load_preset


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Compilations(list):
    """A backend that compiles nothing, and keeps the graphs that it is given."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph


def tiny_model():
    torch.manual_seed(0)
    return Spa3RForPreTraining(Spa3RConfig(**load_preset("spa3r-tiny")))


def views(num_views, num_scenes=2):
    return torch.rand(num_scenes, num_views, 3, 28, 42, generator=torch.Generator().manual_seed(num_views))


@torch.no_grad()
def test_blocks_of_a_kind_share_compilations_for_any_number_of_views():
    config = Spa3RConfig(**load_preset("spa3r-tiny")).vggt_config
    config.num_hidden_layers = 5
    model, compilations, counts = VGGTModel(config).eval(), Compilations(), []
    compile_blocks(model, backend=compilations)
    for num_views in (4, 5, 6, 4, 7):
        model(views(num_views), 2)
        counts.append(len(compilations))
    # A kind within views and one across views, first for the given size, then for all.
    assert counts == [2, 4, 4, 4, 4]


def test_compiled_blocks_give_the_same_losses_and_gradients_under_the_same_names():
    model = tiny_model()
    model.freeze_teachers()
    names, losses, gradients = list(model.state_dict()), [], []
    for compiled in (False, True):
        if compiled:
            compile_blocks(model, backend="eager")
        model.zero_grad()
        loss = model.train()(views(4), 2).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert list(model.state_dict()) == names
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    torch.testing.assert_close(*gradients)


def test_of_a_spa3_vlm_only_the_spatial_encoder_is_compiled():
    vlm = tiny_vlm()
    compile_blocks(vlm, backend="eager")
    compiled = [name for name, module in vlm.named_modules() if module._compiled_call_impl is not None]
    assert compiled and all(name.startswith("model.spatial_encoder.") for name in compiled)


def test_a_model_without_vggt_is_refused():
    with pytest.raises(ValueError, match="`Linear`"):
        compile_blocks(nn.Linear(2, 2))
