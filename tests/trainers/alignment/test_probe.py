"""The encoding of points, the loss over those that are known, and the errors."""

import pytest
import torch

from spa3r.trainers.alignment.probe import PointHead
from spa3r.trainers.runs.points import decode_points, encode_points, point_errors, point_loss


def test_the_encoding_is_a_signed_logarithm_and_is_undone():
    points = torch.tensor([[-3.0, 0.0, 100.0]])
    expected = torch.tensor([[-4.0, 1.0, 101.0]]).abs().log() * torch.tensor([-1, 0, 1])
    torch.testing.assert_close(encode_points(points), expected)
    torch.testing.assert_close(decode_points(encode_points(points)), points)


def test_unknown_points_count_neither_in_the_loss_nor_in_its_gradient():
    points = torch.randn(5, 4, 3)
    unknown = points.clone()
    unknown[2:] = torch.nan
    encoded = torch.randn(5, 4, 3, requires_grad=True)
    loss = point_loss(encoded, unknown)
    torch.testing.assert_close(loss, point_loss(encoded[:2], points[:2]))
    loss.backward()
    assert encoded.grad[:2].any() and not encoded.grad[2:].any()


def test_a_batch_of_unknown_points_has_no_loss():
    assert point_loss(torch.randn(1, 4, 3), torch.full((1, 4, 3), torch.nan)) == 0


def test_errors_are_distances():
    points = torch.tensor([[0.0, 0.0, 2.0], [torch.nan] * 3])
    errors = point_errors(encode_points(torch.tensor([[0.0, 3.0, 6.0], [0.0, 0.0, 0.0]])), points)
    assert errors[0].item() == pytest.approx(5.0, rel=1e-5) and errors[1].isnan()


def test_the_head_gives_each_patch_of_a_token_a_point():
    assert PointHead(hidden_size=8, patches_per_token=4)(torch.randn(6, 8)).shape == (6, 4, 3)
