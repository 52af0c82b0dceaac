"""Muon and AdamW as one optimizer, and initial weights for training from nothing."""

import copy

import torch
from torch import nn

from spa3r.trainers.runs.initialization import initialize_for_scratch
from spa3r.trainers.runs.optimizers import MuonWithAdamW, split_for_muon


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 8))
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)
        self.fresh = nn.Linear(4, 4)
        self.fresh.zero_init = True

    def forward(self, states):
        states = states + self.token
        for block in self.blocks:
            states = states + block(states).relu()
        return self.fresh(self.head(self.norm(states)))


def step(model, optimizer, seed):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(6, 8)).square().mean().backward()
    optimizer.step()


def build(model):
    matrices, others = split_for_muon(model)
    return MuonWithAdamW(matrices, others, lr=1e-2, muon_lr=0.1, weight_decay=0.1)


def test_muon_gets_the_matrices_of_blocks_alone():
    model = Model()
    matrices, others = split_for_muon(model)
    assert [id(each) for each in matrices] == [id(block.weight) for block in model.blocks]
    assert {id(each) for each in matrices + others} == {id(each) for each in model.parameters()}


def test_frozen_weights_are_left_out():
    model = Model()
    model.blocks[0].requires_grad_(False)
    matrices, others = split_for_muon(model)
    assert not {id(each) for each in matrices + others} & {id(each) for each in model.blocks[0].parameters()}


def test_both_optimizers_step_as_they_do_alone():
    torch.manual_seed(0)
    ours = Model()
    initialize_for_scratch(ours)
    theirs = copy.deepcopy(ours)
    matrices, others = split_for_muon(theirs)
    alone = [
        torch.optim.Muon(matrices, lr=0.1, weight_decay=0.1),
        torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0),
    ]
    together = build(ours)
    for seed in range(3):
        step(ours, together, seed)
        torch.manual_seed(seed)
        theirs.zero_grad()
        theirs(torch.randn(6, 8)).square().mean().backward()
        for optimizer in alone:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_schedule_reaches_both_optimizers():
    optimizer = build(Model())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.05, 0.005]


def test_a_loaded_state_continues_to_the_same_bits():
    torch.manual_seed(0)
    whole = Model()
    initialize_for_scratch(whole)
    optimizer = build(whole)
    step(whole, optimizer, 0)
    resumed = copy.deepcopy(whole)
    other = build(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        step(whole, optimizer, seed)
        step(resumed, other, seed)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_weights_from_scratch_keep_the_size_of_states():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), nn.LayerNorm(512))
    initialize_for_scratch(model, gain=1.0)
    states = model[0](torch.randn(200, 512))
    assert abs(states.std().item() - 1) < 0.05
    assert torch.equal(model[1].weight, torch.ones(512))


def test_layers_that_must_start_at_zero_keep_their_weights():
    model = Model()
    nn.init.zeros_(model.fresh.weight)
    initialize_for_scratch(model)
    assert not model.fresh.weight.any()


def test_tokens_from_scratch_have_length():
    torch.manual_seed(0)
    model = Model()
    initialize_for_scratch(model, token_std=0.5)
    assert model.token.abs().max() > 0.1
