# `make quickstart` and `make test` each work alone on a fresh machine: they make .venv and install into it.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quickstart

.PHONY: quickstart test lint style bench docs install

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

# Tensors are tiny: one thread is as fast as two, and does not stall when another program wants the second core.
quickstart: export OMP_NUM_THREADS := 1

# Rooms to learn from and, of another seed, rooms to be tested on; pre-training; the report; the latents of a scene; a
# Spa3-VLM that is instruction-tuned on questions about the rooms; its answers; its score on questions about the others.
quickstart: install
	$(BIN)/spa3r rooms --scenes 112 --views 16 --size 224x168 --seed 0 --workers 2 --output $(RUN)/rooms
	$(BIN)/spa3r rooms --scenes 16 --views 16 --size 224x168 --seed 1 --workers 2 --output $(RUN)/held_out_rooms
	$(BIN)/spa3r pretrain --config rooms-cpu
	$(BIN)/spa3r inspect --model $(RUN)/model --scenes rooms:$(RUN)/held_out_rooms --num-scenes 16 --cameras \
		--image-width 112 --output $(RUN)/report --require-scene-specific
	$(BIN)/python -c "import glob, spa3r; from transformers import AutoImageProcessor, AutoModel; \
		photos = sorted(glob.glob('$(RUN)/held_out_rooms/room_000000/color/*.jpg'))[:4]; \
		views = AutoImageProcessor.from_pretrained('$(RUN)/model')(photos, return_tensors='pt'); \
		model = AutoModel.from_pretrained('$(RUN)/model'); \
		print('latents of 4 views:', tuple(model(**views).latents.shape))"
	rm -rf $(RUN)/spa3-vlm
	$(BIN)/spa3r convert assemble $(RUN)/spa3-vlm --vlm spa3-vlm-nano --spa3r $(RUN)/model --image-width 112
	$(BIN)/spa3r room-questions --rooms $(RUN)/rooms --output $(RUN)/questions
	$(BIN)/spa3r room-questions --rooms $(RUN)/held_out_rooms --output $(RUN)/held_out_questions
	$(BIN)/spa3r encode-scenes --model $(RUN)/spa3-vlm --output $(RUN)/scenes \
		--instructions $(RUN)/questions $(RUN)/held_out_questions
	$(BIN)/accelerate launch --config_file configuration/accelerate/cpu.yaml sft.py \
		--config spa3-vlm-rooms-cpu
	$(BIN)/spa3r ask --model $(RUN)/tuned/model --images $(RUN)/held_out_rooms/room_000000/color/*.jpg --max-new-tokens 16 \
		--question "How many chairs are in the room?" --question "How large is the room, in square meters?"
	$(BIN)/spa3r room-questions --rooms $(RUN)/held_out_rooms --output $(RUN)/benchmark \
		--format benchmark --questions-per-room 30 --train $(RUN)/questions
	rm -rf $(RUN)/benchmark_report
	$(BIN)/spa3r benchmark --model $(RUN)/tuned/model --benchmark rooms --data $(RUN)/benchmark \
		--media $(RUN)/held_out_rooms --output $(RUN)/benchmark_report

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

bench: install
	$(BIN)/python tests/benchmarks/bench_spa3r.py --output runs/bench.json
	$(BIN)/python tests/benchmarks/bench_spa3_vlm.py --output runs/bench_vlm.json
	$(BIN)/python tests/benchmarks/bench_sft.py --output runs/bench_sft.json
	$(BIN)/python tests/benchmarks/bench_instruction_sets.py --output runs/bench_instruction_sets.json
	$(BIN)/python tests/benchmarks/sft_memory.py
	$(BIN)/python tests/benchmarks/bench_benchmarks.py --output runs/bench_benchmarks.json

# The site, in build/docs: a broken link, or a name that the API page has and the package has not, is an error.
docs: install
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
