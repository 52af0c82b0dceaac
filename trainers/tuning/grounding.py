"""Grounding while tuning: the text of a record must tell what its answers follow from.

Names tell where their objects are, and how these lie to the objects named before them; options tell whether they are
right; and the token before an answer tells all of it once more.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..runs.grounding import NAME_DEPTH, OPTION_DEPTH, RELATION_DEPTH, NameHead, grounding_losses, layers_up_to
from ..runs.points import point_loss
from .image_bytes import ImageBytesTrainer
from .relations import NUM_GATHERED, NUM_VALUES, Mention, OptionFinder, answer_spans, gathered, questions_of, relations

# Of an instruction set: names, places and first views of the objects that the images of a record show.
OBJECTS_COLUMN = "objects"
IGNORED = -100  # labels of tokens that no answer is made of
UNSEEN = float("nan")
NOWHERE = [UNSEEN] * 3


RELATION_WEIGHT = 3.0


class GroundingHeads(nn.Module):
    """Read from hidden states what names, relations and options tell.

    Args:
        hidden_size (`int`): Size of the hidden states.
        only_names (`bool`): Whether names alone tell anything.
    """

    def __init__(self, hidden_size: int, only_names: bool):
        super().__init__()
        self.only_names = only_names
        self.name = NameHead(hidden_size)
        if only_names:
            return
        self.relation = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, NUM_VALUES))
        self.before_answer = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, NUM_GATHERED))
        self.option = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, 1))

    def losses(self, states: dict[str, Tensor], truth: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """The weighted losses of a batch.

        Args:
            states (`dict[str, torch.Tensor]`): Hidden states, `(batch_size, sequence_length, hidden_size)`, after the
                layers that `READ_AFTER` names.
            truth (`dict[str, dict[str, torch.Tensor]]`): `objects` of `GroundedCollator`.
        """

        def at(kind: str) -> Tensor:  # the states of a model in bfloat16, too
            return states[kind][truth[kind]["rows"], truth[kind]["columns"]].float()

        names = truth["name"]
        losses = grounding_losses(self.name(at("name")), names["places"], names["first_views"])
        if self.only_names:
            return losses
        is_right = truth["option"]["is_right"]
        options = F.binary_cross_entropy_with_logits(self.option(at("option"))[:, 0], is_right, reduction="sum")
        return losses | {
            "relation": RELATION_WEIGHT * point_loss(self.relation(at("relation")), truth["relation"]["values"]),
            "before_answer": RELATION_WEIGHT
            * point_loss(self.before_answer(at("before_answer")), truth["before_answer"]["values"]),
            "option": options / max(len(is_right), 1),
        }


READ_AFTER = {"name": NAME_DEPTH, "relation": RELATION_DEPTH, "before_answer": OPTION_DEPTH, "option": OPTION_DEPTH}


def attach_heads(model: PreTrainedModel, only_names: bool = False):
    """Give a model the heads that read its text, to be trained and resumed with it; training takes them away.

    Args:
        model (`PreTrainedModel`): Changed in place.
        only_names (`bool`, *optional*, defaults to `False`): As for `GroundingHeads`.
    """
    model.grounding_heads = GroundingHeads(model.config.get_text_config().hidden_size, only_names)


class GroundedCollator:
    """Adds to the batches of a collator where names stand in the text, and what they must tell.

    Records to evaluate on may come without the column of objects.

    A batch has `objects`, each with the `rows` and `columns` of tokens in `input_ids`: `name`, the ends of names, with
    the other fields of `SceneObjects`; `relation`, names after the first of a question, with `values` of `relations`;
    `before_answer`, the tokens before answers, with `values` of `gathered`; `option`, the ends of options, with
    `is_right`, 1 or 0.

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
        self.find_options = OptionFinder(tokenizer)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator([{k: v for k, v in each.items() if k != OBJECTS_COLUMN} for each in examples])
        known = [{each["name"]: each for each in example.get(OBJECTS_COLUMN) or ()} for example in examples]
        found = [
            (row, column, known[row][name])
            for name, row, column in find_names(batch["input_ids"], self.names)
            if name in known[row]
        ]
        found.sort(key=itemgetter(0, 1))
        is_answer = (batch["labels"] != IGNORED).tolist()
        batch["objects"] = {
            "name": _marks(found)
            | {
                "places": torch.tensor([each["place"] or NOWHERE for *_, each in found]).view(-1, 3),
                "first_views": torch.tensor(
                    [UNSEEN if each["first_view"] is None else each["first_view"] for *_, each in found],
                    dtype=torch.float32,
                ),
            },
            "option": self._options(batch["input_ids"], is_answer),
        }
        relation_values, answer_values = _values(found, is_answer)
        batch["objects"] |= {
            "relation": _marks(relation_values) | {"values": _stack(relation_values, NUM_VALUES)},
            "before_answer": _marks(answer_values) | {"values": _stack(answer_values, NUM_GATHERED)},
        }
        return batch

    def _options(self, input_ids: Tensor, is_answer: list[list[bool]]) -> dict[str, Tensor]:
        found = [
            (row, *option)
            for row, answers in enumerate(is_answer)
            for option in self.find_options(input_ids[row], answers)
        ]
        return _marks(found) | {"is_right": torch.tensor([right for *_, right in found], dtype=torch.float32)}


Marked = list[tuple[int, int, list[float]]]  # rows, columns and numbers


def _marks(found: Sequence[tuple[int, int, Any]]) -> dict[str, Tensor]:
    marks = torch.tensor([(row, column) for row, column, _ in found], dtype=torch.long).view(-1, 2)
    return {"rows": marks[:, 0], "columns": marks[:, 1]}


def _stack(values: Marked, size: int) -> Tensor:
    return torch.tensor([numbers for *_, numbers in values], dtype=torch.float32).view(-1, size)


def _values(found: Sequence[tuple[int, int, dict[str, Any]]], is_answer: list[list[bool]]) -> tuple[Marked, Marked]:
    """What names tell of relations, and what the tokens before answers do."""
    told, before_answers = [], []
    for row, names in groupby(found, key=itemgetter(0)):
        questions = questions_of(is_answer[row])
        mentions = [Mention(column, questions[column], each["name"], each["place"]) for _, column, each in names]
        mentions = [mention for mention in mentions if mention.question >= 0]
        told += [(row, column, numbers) for column, numbers in relations(mentions)]
        starts = [begin for begin, _ in answer_spans(is_answer[row])]
        before_answers += [
            (row, starts[question] - 1, numbers) for question, numbers in gathered(mentions) if question < len(starts)
        ]
    return told, before_answers


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
        model (`Spa3VLMForConditionalGeneration`): With heads; see `attach_heads`.
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
        self._states: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._num_batches = 0
        layers: nn.ModuleList = model.model.language_model.layers
        for kind, depth in READ_AFTER.items():
            layer = layers[layers_up_to(depth, len(layers)) - 1]
            layer.register_forward_hook(partial(self._keep_states, kind))

    def _keep_states(self, kind: str, layer: nn.Module, inputs: Any, output: Tensor | tuple):
        self._states[kind] = output if torch.is_tensor(output) else output[0]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """See `SFTTrainer.compute_loss`; in evaluation the loss is that of the answers alone."""
        objects = inputs.pop("objects")
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = result if return_outputs else (result,)
        states, self._states = self._states, {}
        if self.model.training:
            losses = self.accelerator.unwrap_model(model).grounding_heads.losses(states, objects)
            for name, value in losses.items():
                self._sums[name] = self._sums.get(name, 0) + value.detach()
            self._num_batches += 1
            # TRL's loss is a share of all tokens of a step, this one a mean over a batch.
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.grounding_weight * sum(losses.values()) / steps
        return (loss, *outputs) if return_outputs else loss

    def train(self, *args, **kwargs):
        """See `Trainer.train`; the heads are not part of the model that comes out."""
        output = super().train(*args, **kwargs)
        del self.accelerator.unwrap_model(self.model).grounding_heads
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Add the mean of each loss of named objects since the last log, on this process."""
        if "loss" in logs and self._num_batches:
            logs |= {
                f"loss_{name}": round((value / self._num_batches).item(), 5) for name, value in self._sums.items()
            }
            self._sums, self._num_batches = {}, 0
        super().log(logs, start_time)
