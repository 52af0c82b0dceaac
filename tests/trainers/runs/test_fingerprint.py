"""Fingerprints of weights: equal for equal weights, different where anything differs that a checkpoint holds."""

import copy

import pytest
import torch
from torch import nn

from spa3r.trainers.runs.fingerprint import hash_weights


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)


def test_a_copy_has_the_same_fingerprint(network):
    assert hash_weights(copy.deepcopy(network)) == hash_weights(network)


@pytest.mark.parametrize("name", ["0.weight", "1.bias", "1.running_mean"])
def test_any_changed_weight_changes_the_fingerprint(name, network):
    before = hash_weights(network)
    network.state_dict()[name].view(-1)[0] += 1
    assert hash_weights(network) != before


def test_what_no_checkpoint_holds_does_not_count(network):
    before = hash_weights(network)
    network.register_buffer("table", torch.ones(2), persistent=False)
    assert hash_weights(network) == before
