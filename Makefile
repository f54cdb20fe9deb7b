# The only commands that users and CI need. Nothing but python3 >= 3.11 and pip has to be there before.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
HEAD ?= global
RUN ?= runs/demo-$(HEAD)
RECIPE ?= experiments/pretrain/phantom.yaml
WORKERS ?= 2
COMPARE ?= experiments/compare/phantom.yaml
PAPER ?= runs/paper
export HF_HUB_OFFLINE ?= 1
export NO_ALBUMENTATIONS_UPDATE = 1

.PHONY: demo compare paper-table baselines install test check lint format types bench wheel docs clean

demo: install  ## train and test a small dual encoder on phantoms: table, pictures, results.json
	$(BIN)/diptych fit -c $(RECIPE) --model.head $(HEAD) --run $(RUN) --overwrite
	$(BIN)/diptych test -c $(RUN)/config.yaml --run $(RUN) --ckpt_path best
	@echo "pictures: $(RUN)/figures   results: $(RUN)/results.json   logs: $(BIN)/tensorboard --logdir $(RUN)"

compare: install  ## train, test and probe every head alike over three seeds: runs/compare/compare.md and .png
	$(BIN)/diptych compare -c $(COMPARE) --run runs/compare --jobs $(WORKERS)

paper-table: install  ## a whole paper's table on made-up data: PAPER/table/suite.md, table.tex, suite.png
	$(BIN)/python tests/paper_table.py $(PAPER) --jobs $(WORKERS)

baselines: install  ## models that need no training in one table: make baselines DATA=DIR PEERS=FOLDER [MODELS="random imagenet"]
	HF_HUB_OFFLINE=0 $(BIN)/diptych suite -c experiments/baselines/suite.yaml --set DATA=$(DATA) --set PEERS=$(PEERS) \
		$(if $(MODELS),--models $(MODELS)) --run runs/baselines

install: $(VENV)/installed  ## create .venv with everything that development needs

# setup.cfg is the catalogue of entry points: a changed line needs a new install.
$(VENV)/installed: pyproject.toml setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[dev,dicom]'
	touch $@

test: install  ## the whole suite, real-data tests where the data are
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: lint types wheel docs  ## what CI asks before the tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## build the site of the documentation: build/docs/index.html; a warning is an error
	rm -rf build/docs build/doctrees
	$(BIN)/python -m sphinx -W --keep-going -q -j $(WORKERS) -d build/doctrees docs build/docs

types: install
	$(BIN)/mypy

wheel: install  ## build the wheel, install it in an empty environment, count heads and datamodules
	$(BIN)/python tests/wheel_check.py

bench: install
	$(BIN)/python benchmarks/local_pooling.py
	$(BIN)/python benchmarks/reclf.py
	$(BIN)/python benchmarks/reclf.py --memory
	$(BIN)/python benchmarks/head_cost.py
	$(BIN)/python benchmarks/packed.py
	$(BIN)/python benchmarks/retrieval.py
	$(BIN)/python benchmarks/kills.py

clean:
	rm -rf build dist runs docs/reference .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
