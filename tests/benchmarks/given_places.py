"""Does a language model answer questions about places if the place of each named object is given to it?

    python tests/benchmarks/given_places.py --model runs/world/base/model --instructions runs/world/questions \
        --held-out runs/world/held-out-questions --weight 1 --output runs/given_places.json

A nano base VLM reads questions without images. At the end of each name, before one of its layers, the true place of
the object and its first view are added to the hidden state by a small learned layer. `--weight` is
`--grounding_weight` of `spa3r sft`; 0 trains on answers alone. Printed is the share of answers about held-out rooms
that are right in every token.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import ModelConfig

from spa3r.modeling_spa3r.checkpoints.loading import load_processor
from spa3r.modeling_spa3r.layers import MLP
from spa3r.trainers.runs.points import encode_points
from spa3r.trainers.tuning.grounding import OBJECTS_COLUMN, GroundedCollator, GroundedSFTTrainer, attach_heads
from spa3r.trainers.tuning.instruction_data import InstructionCollator, leave_images_out, load_instructions
from spa3r.trainers.tuning.lora import load_to_tune
from spa3r.trainers.tuning.relations import answer_spans
from spa3r.trainers.tuning.sft import _muon, parse_arguments

BATCH = 50


class PlaceGiver(nn.Module):
    """Adds what is known of objects to the hidden states at the ends of their names."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mlp = MLP(4, hidden_size, hidden_size)
        self.truth: dict[str, Tensor] | None = None

    def forward(self, states: Tensor) -> Tensor:
        known = torch.cat([encode_points(self.truth["places"]), self.truth["first_views"][:, None]], dim=-1)
        given = self.mlp(known.nan_to_num(nan=-1.0)).to(states.dtype)
        return states.index_put((self.truth["rows"], self.truth["columns"]), given, accumulate=True)


class GivenPlacesTrainer(GroundedSFTTrainer):
    """Gives the true places of a batch to the model before it reads the batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        model.place_giver.truth = inputs["objects"]["name"]
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def give_places(model: PreTrainedModel, layer: int):
    """Let a model have the true places before one of its layers."""
    model.place_giver = PlaceGiver(model.config.get_text_config().hidden_size)

    def add(module, args, kwargs):
        return (model.place_giver(args[0]), *args[1:]), kwargs

    model.model.language_model.layers[layer].register_forward_pre_hook(add, with_kwargs=True)


def score(model: PreTrainedModel, records: Dataset, collator: GroundedCollator) -> dict[str, float]:
    """The share of answers, of each kind of question, that are right in every token."""
    right, asked = Counter(), Counter()
    model.eval()
    for start in range(0, len(records), BATCH):
        rows = [records[index] for index in range(start, min(start + BATCH, len(records)))]
        batch = collator(rows)
        model.place_giver.truth = batch.pop("objects")["name"]
        labels = batch.pop("labels")
        with torch.no_grad():
            said = model(**batch).logits[:, :-1].argmax(-1)
        for row, record in enumerate(rows):
            spans = answer_spans((labels[row] != -100).tolist())
            for kind, (begin, end) in zip(record["question_type"].split(","), spans, strict=True):
                right[kind] += bool((said[row, begin - 1 : end - 1] == labels[row, begin:end]).all())
                asked[kind] += 1
    return {kind: round(right[kind] / asked[kind], 3) for kind in sorted(asked)}


def main():
    """Train, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="base VLM of the nano world")
    parser.add_argument("--instructions", required=True, help="set of `spa3r room-questions`")
    parser.add_argument("--held-out", required=True, help="such a set about other rooms")
    parser.add_argument("--weight", type=float, default=1.0, help="of what the text must tell (default: %(default)s)")
    parser.add_argument("--layer", type=int, default=0, help="before which places are given (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of 24 records (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    schedule = json.dumps({"num_decay_steps": given.steps // 2, "min_lr_ratio": 0.02})
    options = f"--config spa3-vlm-nano-text --per_device_train_batch_size 24 --max_steps {given.steps}".split()
    options += ["--lr_scheduler_kwargs", schedule, "--save_strategy", "no", "--report_to", "none"]
    _, args, _ = parse_arguments([*options, "--output_dir", str(given.output.with_suffix(""))])
    args.remove_unused_columns = False
    processor = load_processor(given.model)
    training = leave_images_out(load_instructions([given.instructions], 0, (OBJECTS_COLUMN,)))
    held_out = leave_images_out(Dataset.from_parquet(sorted(map(str, Path(given.held_out).glob("data/*.parquet")))))
    model = load_to_tune(ModelConfig(model_name_or_path=given.model, dtype="float32"), bf16=True)
    torch.manual_seed(0)
    attach_heads(model)
    give_places(model, given.layer)
    inner = InstructionCollator(processor, assistant_only_loss=True)
    collator = GroundedCollator(inner, processor.tokenizer, training)
    trainer = GivenPlacesTrainer(
        model,
        args,
        grounding_weight=given.weight,
        data_collator=collator,
        train_dataset=training,
        processing_class=processor,
        optimizers=(_muon(model, args), None),
    )
    trainer.train()
    shares = score(model, held_out, collator)
    given.output.write_text(json.dumps({"weight": given.weight, "steps": given.steps, "right": shares}, indent=1))
    print(json.dumps(shares, indent=1))


if __name__ == "__main__":
    main()
