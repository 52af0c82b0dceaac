# `make quickstart` and `make test` each work alone on a fresh machine: they make .venv and install into it.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 7
RUN := runs/quickstart/$(SEED)
NANO := modeling_spa3r/nano
SHORT := --max_steps 20 --learning_rate 2e-4 --lr_scheduler_type constant --lr_scheduler_kwargs {} --warmup_steps 0 \
	--logging_steps 5 --save_steps 20 --use_cpu true --report_to none
WORLD := --views 12 --every 2 --size 112x84

.PHONY: quickstart world test lint style bench figures gpu docs install

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

# Tensors are tiny: one thread is as fast as two, and does not stall when another program wants the second core.
quickstart: export OMP_NUM_THREADS := 1

# Rooms that no shipped model has seen, drawn from SEED; what the shipped Spa3R predicts of them, with an error unless its
# latents know the room; the shipped Spa3-VLM and a twin that reads the questions alone on the same benchmark, with an
# error unless Spa3-VLM is surely better; then a little training from the shipped weights.
quickstart: install
	$(BIN)/spa3r rooms --scenes 100 $(WORLD) --seed $(SEED) --workers 2 --output $(RUN)/rooms
	$(BIN)/spa3r room-questions --rooms $(RUN)/rooms --output $(RUN)/benchmark \
		--format benchmark --questions-per-room 30 --min-visible-share 0.015
	$(BIN)/spa3r inspect --model $(NANO)/spa3r-nano --scenes rooms:$(RUN)/rooms --num-views 12 --num-scenes 40 --cameras \
		--image-width 112 --num-figures 2 --output $(RUN)/report --require-scene-specific
	$(BIN)/spa3r ask --model $(NANO)/spa3-vlm-nano --images $(RUN)/rooms/room_000000/color/*.jpg --max-new-tokens 16 \
		--question "How many meters is the door from view 1?" --question "What is nearest to the door?"
	$(BIN)/spa3r benchmark --model $(NANO)/spa3-vlm-nano-text --without-images --benchmark rooms \
		--data $(RUN)/benchmark --media $(RUN)/rooms --label "text only" --output $(RUN)/text-only
	$(BIN)/spa3r benchmark --model $(NANO)/spa3-vlm-nano --benchmark rooms --data $(RUN)/benchmark \
		--media $(RUN)/rooms --beside $(RUN)/text-only --label "Spa3-VLM nano" --output $(RUN)/spa3-vlm-nano
	$(BIN)/python -m spa3r.trainers.world.examples --data $(RUN)/benchmark \
		--runs $(RUN)/text-only $(RUN)/spa3-vlm-nano
	$(BIN)/spa3r benchmark --compare $(RUN)/text-only $(RUN)/spa3-vlm-nano --output $(RUN)/comparison \
		--require-better overall
	$(BIN)/spa3r rooms --scenes 64 $(WORLD) --seed 1000 --workers 2 --output $(RUN)/new_rooms
	$(BIN)/spa3r pretrain --config spa3r-rooms --start_from $(NANO)/spa3r-nano --scenes rooms:$(RUN)/new_rooms \
		--overrides vggt_checkpoint=null teachers.semantic.checkpoint=null --from_scratch false --held_out_scenes 8 \
		--output_dir $(RUN)/spa3r $(SHORT)
	$(BIN)/spa3r room-questions --rooms $(RUN)/new_rooms --output $(RUN)/questions --families benchmark direction \
		--turns 6 --views-per-question 12 --questions-per-room 24 --min-visible-share 0.015
	$(BIN)/spa3r encode-scenes --model $(NANO)/spa3-vlm-nano --instructions $(RUN)/questions --output $(RUN)/scenes \
		--vision-features
	$(BIN)/accelerate launch --config_file configuration/accelerate/cpu.yaml sft.py --config spa3-vlm-nano \
		--model_name_or_path $(NANO)/spa3-vlm-nano --instructions $(RUN)/questions --scene_latents $(RUN)/scenes \
		--output_dir $(RUN)/tuned $(SHORT)

# The shipped models and their controls again, from nothing, in an evening; see docs/nano.md.
world: install
	$(BIN)/spa3r world

# A file of tests a core; see above for the threads.
test: export OMP_NUM_THREADS := 1
test: install
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Which line got worse, relative to a plain way to the same result; see tests/benchmarks/guard.py.
bench: install
	$(BIN)/python tests/benchmarks/guard.py --output runs/guard.json

# The tables of docs/performance.
figures: install
	$(BIN)/python tests/benchmarks/bench_spa3r.py --output runs/bench.json
	$(BIN)/python tests/benchmarks/bench_bounds.py --output runs/bench_bounds.json
	$(BIN)/python tests/benchmarks/bench_spa3_vlm.py --output runs/bench_vlm.json
	$(BIN)/python tests/benchmarks/bench_sft.py --output runs/bench_sft.json
	$(BIN)/python tests/benchmarks/bench_image_bytes.py --output runs/bench_image_bytes.json
	$(BIN)/python tests/benchmarks/bench_instruction_sets.py --output runs/bench_instruction_sets.json
	$(BIN)/python tests/benchmarks/sft_memory.py
	$(BIN)/python tests/benchmarks/bench_benchmarks.py --output runs/bench_benchmarks.json
	$(BIN)/python tests/benchmarks/bench_shared_scenes.py --output runs/bench_shared_scenes.json
	$(BIN)/python tests/benchmarks/bench_serve.py --output runs/bench_serve.json

# What only a GPU can tell, within 9 minutes; started again, what has not finished. See tests/gpu/README.md.
gpu: install
	$(BIN)/python tests/gpu/run.py --output runs/gpu.json --minutes 9

# The site, in build/docs: a broken link, or a name that the API page has and the package has not, is an error.
docs: install
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
