"""Evaluation of held-out views: every number against a slow computation on raw tensors."""

import json
import math

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from spa3r import Spa3RForPreTraining
from spa3r.configuration import Spa3RConfig, load_preset
from spa3r.trainers.pretraining.evaluation import PSFMReport, PSFMRow, evaluate_psfm, nearest_context_views

NUM_VIEWS, NUM_CONTEXT = 5, 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Spa3RForPreTraining(Spa3RConfig.from_dict(load_preset("spa3r-tiny"))).eval()


def turned_camera(degrees: float, centre=(0.0, 0.0, 0.0)) -> torch.Tensor:
    """World to camera, of a camera at `centre` turned to the right."""
    angle = math.radians(degrees)
    camera = torch.eye(4)
    camera[0, 0] = camera[2, 2] = math.cos(angle)
    camera[2, 0], camera[0, 2] = math.sin(angle), -math.sin(angle)
    camera[:3, 3] = -camera[:3, :3] @ torch.tensor(centre)
    return camera


class RandomScenes(Dataset):
    """Noise with random cameras, in the form of `SceneViews`."""

    def __init__(self, sizes=((28, 42),) * 3, cameras: bool = True):
        generator = torch.Generator().manual_seed(0)
        self.items = []
        for index, (height, width) in enumerate(sizes):
            pixels = torch.randint(0, 256, (NUM_VIEWS, 3, height, width), generator=generator, dtype=torch.uint8)
            item = {
                "pixel_values": pixels,
                "num_context_views": NUM_CONTEXT,
                "scene_id": f"scene{index}",
                "frame_indices": list(range(NUM_VIEWS)),
                "replaced_frames": [],
                "dropped_scenes": [],
            }
            if cameras:
                degrees = 180 * torch.rand(NUM_VIEWS, generator=generator)
                centres = torch.randn(NUM_VIEWS, 3, generator=generator)
                poses = [turned_camera(d, c.tolist()) for d, c in zip(degrees.tolist(), centres, strict=True)]
                item["extrinsics"] = torch.stack(poses)
                intrinsics = torch.tensor([[30.0, 0, width / 2], [0, 30.0, height / 2], [0, 0, 1]])
                item["intrinsics"] = intrinsics.repeat(NUM_VIEWS, 1, 1)
                depth = 1 + torch.rand(NUM_VIEWS, height, width, generator=generator)
                depth[torch.rand(depth.shape, generator=generator) < 0.3] = 0.0
                item["depth"] = depth
            self.items.append(item)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        _, scene, _ = index
        return self.items[scene]


def raw_predictions(model, scenes):
    """Of each scene, what the model's own methods give, without its batch axis: the input of the slow computation."""
    observations = []
    for item in scenes.items:
        inputs = {"pixel_values": item["pixel_values"][None].float() / 255, "num_context_views": NUM_CONTEXT}
        inputs |= {key: item[key][None] for key in ("extrinsics", "intrinsics", "depth") if key in item}
        with torch.no_grad():
            observed = model.observe(**inputs)
            height, width = item["pixel_values"].shape[-2:]
            latents = model.model.encode(observed["context_features"], (height // 14, width // 14))
        observations.append((observed, latents, (height, width)))
    raw = []
    for index, (observed, latents, image_size) in enumerate(observations):
        other_latents = observations[(index + 1) % len(observations)][1]
        cameras = observed["extrinsics"][:, NUM_CONTEXT:], observed["intrinsics"][:, NUM_CONTEXT:]
        with torch.no_grad():
            own, other = (model.decode(scene, *cameras, image_size) for scene in (latents, other_latents))
        truth = observed["targets"] | {"depth": observed["depth"]}
        raw.append(
            {
                "truth": {name: values[0].double().numpy() for name, values in truth.items()},
                "own": {name: values[0].double().numpy() for name, values in own.items()},
                "other": {name: values[0].double().numpy() for name, values in other.items()},
                "extrinsics": observed["extrinsics"][0].double().numpy(),
            }
        )
    return raw


def slow_nearest(extrinsics, view):
    """Angle to, and index of, the context view that looks in the direction most like the view's."""
    angles = []
    for context in range(NUM_CONTEXT):
        cosine = float(np.dot(extrinsics[view][2, :3], extrinsics[context][2, :3]))
        angles.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
    return min(angles), angles.index(min(angles))


def slow_feature_metrics(prediction, target):
    differences, cosines = [], []
    for patch in range(target.shape[0]):
        differences.append(sum(abs(prediction[patch] - target[patch])) / target.shape[1])
        norms = math.sqrt(sum(prediction[patch] ** 2)) * math.sqrt(sum(target[patch] ** 2))
        cosines.append(sum(prediction[patch] * target[patch]) / norms)
    return {"l1": np.mean(differences), "cosine": np.mean(cosines)}


def slow_depth_metrics(prediction, target):
    pairs = [(p, t) for p, t in zip(prediction, target, strict=True) if t > 0]
    return {"l1": np.mean([abs(p - t) for p, t in pairs]), "abs_rel": np.mean([abs(p - t) / t for p, t in pairs])}


def slow_mean(raw, scene, name, patch):
    others = [r["truth"][name][view][patch] for i, r in enumerate(raw) if i != scene for view in range(2, NUM_VIEWS)]
    if name == "depth":
        others = [depth for depth in others if depth > 0]
    return sum(others) / len(others)


def slow_values(raw):
    """`{(target, metric, source): [(angle, value) of each target view]}`."""
    values = {}
    for scene, tensors in enumerate(raw):
        for view in range(NUM_CONTEXT, NUM_VIEWS):
            angle, nearest = slow_nearest(tensors["extrinsics"], view)
            for name, truth in tensors["truth"].items():
                predictions = {source: tensors[source][name][view - NUM_CONTEXT] for source in ("own", "other")}
                patches = range(truth.shape[1])
                predictions["mean"] = np.array([slow_mean(raw, scene, name, patch) for patch in patches])
                measure = slow_depth_metrics if name == "depth" else slow_feature_metrics
                if name != "depth":
                    predictions["nearest"] = truth[nearest]
                for source, prediction in predictions.items():
                    for metric, value in measure(prediction, truth[view]).items():
                        values.setdefault((name, metric, source), []).append((angle, value))
    return values


@pytest.mark.parametrize("cameras", [True, False], ids=["given_cameras", "estimated_cameras"])
def test_every_number_equals_a_slow_computation(model, cameras):
    scenes = RandomScenes(cameras=cameras)
    report = evaluate_psfm(model, scenes, NUM_VIEWS, show_progress=False)
    expected = slow_values(raw_predictions(model, scenes))
    for row in report.rows:
        for source in ("own", "other", "mean", "nearest"):
            if (row.target, row.metric, source) not in expected:
                assert getattr(row, source) is None
                continue
            pairs = expected[row.target, row.metric, source]
            chosen = [v for angle, v in pairs if row.min_angle <= angle < row.max_angle + (row.max_angle == 180)]
            assert len(chosen) == row.num_views
            assert getattr(row, source) == pytest.approx(np.mean(chosen), rel=1e-4, abs=1e-5), (row, source)
    assert {(row.target, row.metric) for row in report.rows} == {key[:2] for key in expected}
    assert report.given_cameras is cameras


def test_the_bins_divide_the_views_of_the_overall_row(model):
    report = evaluate_psfm(model, RandomScenes(), NUM_VIEWS, show_progress=False)
    rows = [row for row in report.rows if (row.target, row.metric) == ("semantic", "l1")]
    assert rows[0].num_views == sum(row.num_views for row in rows[1:]) == 3 * (NUM_VIEWS - NUM_CONTEXT)
    assert len(rows) > 2


def test_the_same_call_gives_the_same_report_and_leaves_the_random_state(model):
    before = torch.get_rng_state()
    first = evaluate_psfm(model, RandomScenes(), NUM_VIEWS, show_progress=False)
    second = evaluate_psfm(model, RandomScenes(), NUM_VIEWS, show_progress=False)
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_number_of_scenes_can_be_limited(model):
    limited = evaluate_psfm(model, RandomScenes(), NUM_VIEWS, num_scenes=2, show_progress=False)
    fewer = evaluate_psfm(model, RandomScenes(sizes=((28, 42),) * 2), NUM_VIEWS, show_progress=False)
    assert limited == fewer


def test_a_scene_standing_in_for_an_unreadable_one_counts_once(model):
    scenes = RandomScenes()
    expected = evaluate_psfm(model, scenes, NUM_VIEWS, show_progress=False)
    scenes.items.insert(0, scenes.items[0] | {"dropped_scenes": ["broken"]})
    assert evaluate_psfm(model, scenes, NUM_VIEWS, show_progress=False) == expected


def test_training_mode_is_restored(model):
    model.train()
    evaluate_psfm(model, RandomScenes(), NUM_VIEWS, show_progress=False)
    assert model.decoder.training
    model.eval()


def test_a_single_scene_has_no_other_scene_and_no_mean(model):
    report = evaluate_psfm(model, RandomScenes(sizes=((28, 42),)), NUM_VIEWS, show_progress=False)
    assert all(row.other is None and row.mean is None and row.own is not None for row in report.rows)
    assert "1 scene," in report.to_table()
    with pytest.raises(ValueError, match="got 1"):
        report.beats_other_scene()


def test_no_scene_is_refused(model):
    with pytest.raises(ValueError, match="`num_scenes`"):
        evaluate_psfm(model, RandomScenes(sizes=()), NUM_VIEWS, show_progress=False)


def test_unreadable_scenes_alone_are_refused(model):
    scenes = RandomScenes()
    scenes.items[0]["dropped_scenes"] = ["broken"]
    with pytest.raises(ValueError, match="readable"):
        evaluate_psfm(model, scenes, NUM_VIEWS, num_scenes=1, show_progress=False)


def test_scenes_of_other_image_sizes_share_a_mean(model):
    scenes = RandomScenes(sizes=((28, 42), (56, 28)))
    report = evaluate_psfm(model, scenes, NUM_VIEWS, show_progress=False)
    tall, wide = (raw["truth"]["geometry"][NUM_CONTEXT:] for raw in reversed(raw_predictions(model, scenes)))
    resample = torch.nn.functional.interpolate
    # The mean is kept on the grid of the first scene, and resampled for the second.
    errors = []
    for target, other, grid, other_grid in ((wide, tall, (2, 3), (4, 2)), (tall, wide, (4, 2), (2, 3))):
        mean = torch.tensor(other.mean(0)).T.unflatten(1, other_grid)[None]
        mean = resample(mean, grid, mode="bilinear").flatten(2)[0].T.numpy()
        errors += [abs(view - mean).mean() for view in target]
    assert report.metrics()["geometry_l1_mean"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_bfloat16_models_give_close_numbers(model):
    scenes = RandomScenes()
    exact = evaluate_psfm(model, scenes, NUM_VIEWS, show_progress=False).metrics()
    half = Spa3RForPreTraining(model.config)
    half.load_state_dict(model.state_dict())
    rough = evaluate_psfm(half.to(torch.bfloat16), scenes, NUM_VIEWS, show_progress=False).metrics()
    assert rough == pytest.approx(exact, abs=0.05)


def test_angles_to_the_nearest_context_view_are_exact():
    cameras = torch.stack(
        [turned_camera(0), turned_camera(90), turned_camera(10), turned_camera(80), turned_camera(-170)]
    )
    angles, nearest = nearest_context_views(cameras[None], num_context_views=2)
    assert angles.tolist() == [pytest.approx([10, 10, 100], abs=1e-4)]
    assert nearest.tolist() == [[0, 1, 1]]


def test_parallel_context_views_are_told_apart_by_distance():
    centres = [(5.0, 0, 0), (1.0, 0, 0), (3.0, 0, 0), (0.0, 0, 0)]
    cameras = torch.stack([turned_camera(33.3, centre) for centre in centres])
    angles, nearest = nearest_context_views(cameras[None], num_context_views=3)
    assert nearest.tolist() == [[1]]
    assert angles.item() == pytest.approx(0, abs=1e-4)


def test_context_order_of_several_scenes_in_a_batch_is_kept_apart():
    first = torch.stack([turned_camera(0), turned_camera(90), turned_camera(20)])
    second = torch.stack([turned_camera(0), turned_camera(90), turned_camera(60)])
    angles, nearest = nearest_context_views(torch.stack([first, second]), num_context_views=2)
    assert nearest.tolist() == [[0], [1]]
    assert angles.flatten().tolist() == pytest.approx([20, 30], abs=1e-4)


def report_of(l1_own: float, cosine_own: float) -> PSFMReport:
    rows = [
        PSFMRow("geometry", "l1", 0, 180, 4, own=l1_own, other=1.0, mean=1.0, nearest=1.0),
        PSFMRow("geometry", "l1", 15, 30, 4, own=l1_own, other=1.0, mean=1.0, nearest=1.0),
        PSFMRow("geometry", "cosine", 0, 180, 4, own=cosine_own, other=0.5, mean=0.5, nearest=0.5),
        PSFMRow("depth", "l1", 0, 180, 4, own=9.0, other=1.0, mean=1.0),
    ]
    return PSFMReport(rows, num_scenes=2, given_cameras=True)


@pytest.mark.parametrize(
    ("l1_own", "cosine_own", "beats"), [(0.9, 0.6, True), (1.1, 0.6, False), (0.9, 0.4, False), (0.999, 0.501, False)]
)
def test_beating_another_scene_takes_every_feature_metric(l1_own, cosine_own, beats):
    assert report_of(l1_own, cosine_own).beats_other_scene() is beats


def test_metrics_are_named_by_target_metric_and_source():
    metrics = report_of(0.9, 0.6).metrics()
    assert metrics["geometry_cosine_own"] == 0.6
    assert metrics["depth_l1_mean"] == 1.0
    assert "depth_l1_nearest" not in metrics


def test_the_table_is_markdown_with_aligned_columns():
    table = report_of(0.9, 0.6).to_table().split("\n\n")[0].splitlines()
    assert len({len(line) for line in table}) == 1
    assert [cell.strip() for cell in table[3].split("|")[1:-1]] == [
        *["", "", "15-30°", "4", "0.9000", "1.0000", "1.0000", "1.0000"]
    ]


def test_the_report_survives_json():
    report = report_of(0.9, 0.6)
    loaded = json.loads(report.to_json())
    assert PSFMReport(**(loaded | {"rows": [PSFMRow(**row) for row in loaded["rows"]]})) == report
