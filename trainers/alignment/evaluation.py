"""How far predicted points are from the true ones in held-out scenes, beside what needs no scene, or the wrong one."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..runs.points import point_errors
from .encoders import EncodedScenes, FrozenEncoders
from .grounding import NamedText, TextWriter
from .probe import AdapterWithHead
from .views import AlignmentViews, collate_alignment

OBJECTS_LINE = (
    " In the line of objects: of the places that names tell, and of the mean place of all objects of the name."
)
SOURCES = {"own": "own latents", "other": "other scene", "mean": "mean point"}


@dataclass(frozen=True)
class AlignmentReport:
    """
    Mean distances of predicted points from the true ones, by the views that show them: `all`, the `first`, the `rest`.
    After grounding also `objects`: those of the places that names tell from the true ones.

    num_scenes (`int`):
        Held-out scenes.
    unit (`str`):
        Unit of the distances.
    own (`dict[str, float]`):
        From image tokens that were fused with the latents of their scene.
    other (`dict[str, float]`):
        From image tokens that were fused with the latents of another held-out scene; empty if there is none.
    mean (`dict[str, float]`):
        Of the mean of all held-out points at the same patch, whatever the images show.
    """

    num_scenes: int
    unit: str
    own: dict[str, float]
    other: dict[str, float]
    mean: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """Numbers by flat names such as `point_error_own` and `point_error_own_first`, for logging."""
        return {
            f"point_error_{source}" + ("" if views == "all" else f"_{views}"): value
            for source in SOURCES
            for views, value in getattr(self, source).items()
        }

    def to_table(self) -> str:
        """The report as a Markdown table."""
        lines = [["views", *SOURCES.values()], ["---"] + ["---:"] * len(SOURCES)]
        for views in self.own:
            errors = [getattr(self, source).get(views) for source in SOURCES]
            lines.append([views, *("–" if error is None else f"{error:.3f}" for error in errors)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        scenes = "1 scene" if self.num_scenes == 1 else f"{self.num_scenes} scenes"
        return (
            f"{table}\n\n{scenes}. Mean distance of predicted points from the true ones in {self.unit}, lower is "
            "better: from image tokens that were fused with the scene's own latents, from the same tokens fused with "
            "another scene's, and of the mean point at the same patch, which knows no image."
            + (OBJECTS_LINE if "objects" in self.own else "")
        )


@torch.no_grad()
def evaluate_alignment(
    model: AdapterWithHead,
    encoders: FrozenEncoders,
    dataset: AlignmentViews,
    num_views: int,
    images_per_batch: int,
    unit: str,
    writer: TextWriter | None = None,
) -> AlignmentReport:
    """Compare predicted points of held-out scenes with the true ones.

    Args:
        model (`AdapterWithHead`): Adapter and head.
        encoders (`FrozenEncoders`): Encoders and, if the scenes have no depth, the source of points.
        dataset (`AlignmentViews`): Held-out scenes.
        num_views (`int`): Views of each scene.
        images_per_batch (`int`): Images to encode at a time; a batch has at least two scenes.
        unit (`str`): Unit of the points.
        writer (`TextWriter`, *optional*): Writes the names of objects, for a `GroundedAdapter`.
    """
    device = next(model.parameters()).device
    found, places = defaultdict(list), {}
    was_training = model.training
    model.eval()
    plan = _plan(len(dataset), num_views, images_per_batch)
    for batch in DataLoader(dataset, batch_sampler=plan, collate_fn=collate_alignment):
        scenes = encoders({name: value.to(device) for name, value in batch.items() if torch.is_tensor(value)})
        found["points"].append(scenes.points.cpu())
        found["is_first"].append(batch["patch_pixels"][..., 0] == 0)
        found["place"].append(_places(batch["image_grid_thw"], places).view(scenes.points.shape[:2]))
        text = None
        if writer is not None:
            found["name"] += [objects.names for objects in scenes.objects]
            found["object"] += [objects.places for objects in scenes.objects]
            text = writer(scenes.grids, [objects.names for objects in scenes.objects]).to(device)
        # The latents of the next scene; a single scene has no other.
        for source, latents in (("own", scenes.latents), ("other", scenes.latents[1:] + scenes.latents[:1])):
            if source == "own" or len(dataset) > 1:
                for name, errors in _errors(model, scenes, latents, text).items():
                    found[source, name].append(errors.cpu())
    model.train(was_training)
    joined = {name: torch.cat(values) for name, values in found.items()}
    joined["mean", "points"] = (_mean_points(joined["points"], joined["place"]) - joined["points"]).norm(dim=-1)
    if writer is not None:
        joined["mean", "objects"] = (_mean_points(joined["object"], joined["name"]) - joined["object"]).norm(dim=-1)
    return AlignmentReport(len(dataset), unit, **{source: _means(joined, source) for source in SOURCES})


def _errors(
    model: AdapterWithHead, scenes: EncodedScenes, latents: list[Tensor], text: NamedText | None
) -> dict[str, Tensor]:
    """Errors of the points and, with a text, of the places of objects, if the scenes had these latents."""
    if text is None:
        return {"points": point_errors(model(scenes.image_tokens, latents), scenes.points)}
    points, said = model(scenes.image_tokens, latents, text)
    places = torch.cat([objects.places for objects in scenes.objects])
    return {"points": point_errors(points, scenes.points), "objects": point_errors(said.places.cpu(), places)}


def _means(joined: dict[Any, Tensor], source: str) -> dict[str, float]:
    """Mean errors of a source; empty if it has none."""
    if (source, "points") not in joined:
        return {}
    errors, is_first = joined[source, "points"], joined["is_first"]
    views = {"all": torch.ones_like(is_first), "first": is_first, "rest": ~is_first}
    means = {name: errors[shown].nanmean().item() for name, shown in views.items()}
    if not joined.get((source, "objects"), torch.tensor([])).isnan().all():
        means["objects"] = joined[source, "objects"].nanmean().item()
    return means


def _plan(num_scenes: int, num_views: int, images_per_batch: int) -> list[list[tuple[int, int, int]]]:
    """Requests in batches of two scenes at least, which exchange their latents."""
    size = max(2, images_per_batch // num_views)
    requests = [(0, index, num_views) for index in range(num_scenes)]
    batches = [requests[start : start + size] for start in range(0, num_scenes, size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def _places(grids: Tensor, known: dict[tuple[int, int], int]) -> Tensor:
    """A number for the place of each patch in its image; images of one grid share theirs."""
    places = []
    for _, rows, columns in grids.tolist():
        start = known.setdefault((rows, columns), sum(height * width for height, width in known))
        places.append(start + torch.arange(rows * columns))
    return torch.cat(places)


def _mean_points(points: Tensor, place: Tensor) -> Tensor:
    """The mean of all known points at the place of each point."""
    is_known = ~points.isnan().any(-1)
    num_places = int(place.max()) + 1 if len(place) else 0  # scenes without objects have no places
    sums = points.new_zeros(num_places, 3).index_add(0, place[is_known], points[is_known])
    counts = place[is_known].bincount(minlength=len(sums))
    return (sums / counts[:, None])[place]
