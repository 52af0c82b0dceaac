"""Grounding while tuning: the names in a record's text must tell where their objects are, besides the answers."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..runs.grounding import NameHead, grounded_layer, grounding_losses
from .image_bytes import ImageBytesTrainer

# Of an instruction set: names, places and first views of the objects that the images of a record show.
OBJECTS_COLUMN = "objects"
UNSEEN = float("nan")
NOWHERE = [UNSEEN] * 3


def attach_head(model: PreTrainedModel):
    """Give a model the head that reads names, to be trained and resumed with it; training takes it away in the end."""
    model.name_head = NameHead(model.config.get_text_config().hidden_size)


class GroundedCollator:
    """Adds to the batches of a collator where names stand in the text, and what they must tell.

    Records to evaluate on may come without the column of objects.

    A batch has `objects`: `rows` and `columns` of the last token of each name in `input_ids`, and the fields of
    `SceneObjects`.

    Args:
        collator (`Callable`): Makes batches of records.
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
        dataset (`Dataset`): The training set; names of objects of any record are told apart from longer ones.
    """

    def __init__(
        self, collator: Callable[[list], dict[str, Any]], tokenizer: PreTrainedTokenizerBase, dataset: Dataset
    ):
        self.collator = collator
        names = {each["name"] for objects in dataset[OBJECTS_COLUMN] for each in objects or ()}
        tokens = {name: tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in sorted(names)}
        self.names = dict(sorted(tokens.items(), key=lambda item: -len(item[1])))

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator([{k: v for k, v in each.items() if k != OBJECTS_COLUMN} for each in examples])
        known = [{each["name"]: each for each in example.get(OBJECTS_COLUMN) or ()} for example in examples]
        found = [
            (row, column, known[row][name])
            for name, row, column in find_names(batch["input_ids"], self.names)
            if name in known[row]
        ]
        batch["objects"] = {
            "rows": torch.tensor([row for row, _, _ in found], dtype=torch.long),
            "columns": torch.tensor([column for _, column, _ in found], dtype=torch.long),
            "places": torch.tensor([each["place"] or NOWHERE for _, _, each in found]).view(-1, 3),
            "first_views": torch.tensor(
                [UNSEEN if each["first_view"] is None else each["first_view"] for _, _, each in found],
                dtype=torch.float32,
            ),
        }
        return batch


def check_objects(dataset: Dataset):
    """Refuse a training set without names to ground, or with an object that is described wrongly."""
    for row, objects in enumerate(dataset[OBJECTS_COLUMN]):
        for each in objects or ():
            if not _is_described(each):
                raise ValueError(
                    f"Record {row} of `instructions` lists the object {each}: give it a `name`, a `place` of three "
                    "numbers or null, and a `first_view` from 0 to 1 or null, or set `grounding_weight` to 0."
                )
    if not any(map(_names_an_object, dataset.select_columns(["messages", OBJECTS_COLUMN]))):
        raise ValueError(
            f"No record of `instructions` names an object that its column `{OBJECTS_COLUMN}` lists: give sets of "
            "`spa3r room-questions`, or set `grounding_weight` to 0."
        )


def _names_an_object(record: dict[str, Any]) -> bool:
    text = str(record["messages"])  # whatever the form of their contents
    return any(f" {each['name']}" in text for each in record[OBJECTS_COLUMN] or ())


def _is_described(each: Any) -> bool:
    if not isinstance(each, dict) or not {"name", "place", "first_view"} <= each.keys():
        return False
    name, place, first_view = each["name"], each["place"], each["first_view"]
    return (
        isinstance(name, str)
        and bool(name.strip())
        and (place is None or (_are_numbers(place) and len(place) == 3))
        and (first_view is None or (_are_numbers([first_view]) and 0 <= first_view <= 1))
    )


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, int | float) and math.isfinite(each) for each in values)


def find_names(input_ids: Tensor, names: dict[str, list[int]]) -> Iterable[tuple[str, int, int]]:
    """Find names in a text, with the row and the column of their last tokens.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): The text.
        names (`dict[str, list[int]]`): Tokens of each name, longer names first: "coffee table" is no "table".
    """
    taken = torch.zeros_like(input_ids, dtype=torch.bool)
    for name, tokens in names.items():
        length = len(tokens)
        if length > input_ids.shape[1]:
            continue
        is_here = (input_ids.unfold(1, length, 1) == torch.tensor(tokens)).all(-1)
        is_here &= ~taken.unfold(1, length, 1).any(-1)
        for row, start in is_here.nonzero().tolist():
            taken[row, start : start + length] = True
            yield name, row, start + length - 1


class GroundedSFTTrainer(ImageBytesTrainer):
    """The trainer of `spa3r sft`, which adds the losses of named objects to that of the answers.

    Args:
        model (`Spa3VLMForConditionalGeneration`): With a head; see `attach_head`.
        grounding_weight (`float`): Weight of these losses.
        kwargs: As for `SFTTrainer`; batches are those of `GroundedCollator`.
    """

    def __init__(self, model: PreTrainedModel, *args, grounding_weight: float, **kwargs):
        super().__init__(model, *args, **kwargs)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                f"`grounding_weight` is for models that fit one device, got {grounding_weight:g} under DeepSpeed or "
                "FSDP: set it to 0, or launch without them."
            )
        self.grounding_weight = grounding_weight
        self._states: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._num_batches = 0
        layers: nn.ModuleList = model.model.language_model.layers
        layers[grounded_layer(len(layers)) - 1].register_forward_hook(self._keep_states)

    def _keep_states(self, layer: nn.Module, inputs: Any, output: Tensor | tuple):
        self._states = output if torch.is_tensor(output) else output[0]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """See `SFTTrainer.compute_loss`; in evaluation the loss is that of the answers alone."""
        objects = inputs.pop("objects")
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = result if return_outputs else (result,)
        states, self._states = self._states, None
        if self.model.training:
            head = self.accelerator.unwrap_model(model).name_head
            found = head(states[objects["rows"], objects["columns"]])
            losses = grounding_losses(found, objects["places"], objects["first_views"])
            for name, value in losses.items():
                self._sums[name] = self._sums.get(name, 0) + value.detach()
            self._num_batches += 1
            # TRL's loss is a share of all tokens of a step, this one a mean over a batch.
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.grounding_weight * sum(losses.values()) / steps
        return (loss, *outputs) if return_outputs else loss

    def train(self, *args, **kwargs):
        """See `Trainer.train`; the head is not part of the model that comes out."""
        output = super().train(*args, **kwargs)
        del self.accelerator.unwrap_model(self.model).name_head
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Add the mean of each loss of named objects since the last log, on this process."""
        if "loss" in logs and self._num_batches:
            logs |= {
                f"loss_{name}": round((value / self._num_batches).item(), 5) for name, value in self._sums.items()
            }
            self._sums, self._num_batches = {}, 0
        super().log(logs, start_time)
