"""What a forward pass must not do on an accelerator: wait for the host, copy from it, or break a compiled graph."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spa3r import Spa3RForPreTraining, Spa3RModel, VGGTForGeometry
from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.modeling_spa3r.vggt.modeling_vggt import check_pixel_range

HEIGHT, WIDTH = 28, 42
# One layer of each kind: what is checked does not depend on their number.
SMALL = {
    "vggt_config": load_preset("spa3r-tiny")["vggt_config"] | {"num_hidden_layers": 1, "dense_layers": [0, 0, 0, 0]},
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}


def build(model_class, **changes):
    config = Spa3RConfig(**(load_preset("spa3r-tiny") | SMALL | changes))
    torch.manual_seed(0)
    return model_class(config.vggt_config if model_class is VGGTForGeometry else config)


def views(device, num_views=4):
    return torch.rand(2, num_views, 3, HEIGHT, WIDTH, device=device)


def cameras(device):
    intrinsics = torch.eye(3, device=device).repeat(2, 4, 1, 1)
    depth = torch.ones(2, 4, HEIGHT, WIDTH, device=device)
    return {"extrinsics": torch.eye(4, device=device).repeat(2, 4, 1, 1), "intrinsics": intrinsics, "depth": depth}


class OnOneDevice(TorchDispatchMode):
    """Refuses operations that read or make tensors of another device, and those that give a number to the host."""

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor))
        if any(tensor.device != self.device for tensor in tensors):
            raise AssertionError(f"`{function}` copies between the host and the device")
        return output


PASSES = {
    "geometry of VGGT": (VGGTForGeometry, {}, lambda model, device: model(views(device), 2).points),
    "latents": (Spa3RModel, {}, lambda model, device: model(views(device)).latents),
    "pre-training": (Spa3RForPreTraining, {}, lambda model, device: model(views(device), 2).loss),
    "pre-training on given cameras": (
        Spa3RForPreTraining,
        {},
        lambda model, device: model(views(device), 2, **cameras(device)).loss,
    ),
    "pre-training on Plücker rays": (
        Spa3RForPreTraining,
        {"camera_embedding": "plucker", "view_aggregation": "separate", "predict_context_views": True},
        lambda model, device: model(views(device), 2).loss,
    ),
}


@pytest.mark.parametrize(("model_class", "changes", "run"), PASSES.values(), ids=PASSES)
def test_a_pass_neither_copies_from_the_host_nor_waits_for_it(model_class, changes, run):
    # A tensor on this device has no values, so reading one is an error of its own.
    with torch.device("meta"):
        model = build(model_class, **changes)
    with OnOneDevice("meta"):
        run(model, "meta").sum().backward()


@pytest.mark.parametrize("name", ["geometry of VGGT", "pre-training"])
def test_a_pass_compiles_to_one_graph_that_exchanges_no_numbers_with_the_host(name):
    model_class, changes, run = PASSES[name]
    model, graphs = build(model_class, **changes).eval(), []

    def keep(graph, inputs):
        graphs.append(graph.graph)
        return graph

    assert torch.compile(lambda: run(model, "cpu"), backend=keep, fullgraph=True)().isfinite().all()
    (graph,) = graphs
    assert not {"item", "new_tensor", torch.tensor} & {node.target for node in graph.nodes}


def test_compiled_code_checks_pixels_too():
    compiled = torch.compile(check_pixel_range, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="`pixel_values`"):
        compiled(torch.full((2, 3), 1.5))
