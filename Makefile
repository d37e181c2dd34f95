# Expunge: `make demo` runs the whole procedure from nothing, `make test` the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more than there are cores, for tests often wait for the processes they start; 3 GB of memory for each; 4 at most.
TEST_JOBS ?= $(shell printf '%s\n' 4 $$(($$(nproc 2>/dev/null || echo 2) + 1)) \
  $$(awk '/^MemTotal/ { print int($$2 / 3e6) }' /proc/meminfo 2>/dev/null) | sort -n | head -n 1)
FINDINGS := $(sort $(wildcard findings/*.sh))
FOUND ?= build/findings
export BENTOML_DO_NOT_TRACK := True
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo serve test mutants faults fuzz fuzz-api check format constraints audit-dependencies sbom package image \
  image-cuda clean benchmarks banks docs pictures findings

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/installed  ## the whole procedure on real faces: serve, erase, certify, swap
	@$(BIN)/expunge demo

serve: $(VENV)/installed  ## the service and the worker, until Ctrl-C
	@$(BIN)/expunge up

test: $(VENV)/developed  ## the tests, in TEST_JOBS processes
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

faults: $(VENV)/developed  ## hundreds of kills, full disks, lost volumes, failing stores; then a table
	$(BIN)/python -m tests.faults

fuzz: $(VENV)/developed  ## a hundred thousand damaged images through the decoder
	$(BIN)/python -m tests.fuzz

fuzz-api: $(VENV)/developed  ## thousands of generated calls of the API, and its model with crashes
	EXPUNGE_FUZZ=20 $(BIN)/python -m pytest tests/journey/test_fuzz_api.py tests/service/requests/test_machine.py

mutants: $(VENV)/developed  ## do the tests notice small mistakes in the statistics? MUTANTS='audit.checks*' for a part
	@$(BIN)/python -m pip install -qq --progress-bar off -c constraints.txt -e '.[dev,mutants]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

check: $(VENV)/developed  ## format, lint, types, import directions, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint deploy/docker/Dockerfile
	$(BIN)/python .ci/dependencies.py audit

format: $(VENV)/developed  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

banks: $(VENV)/developed  ## the published margins anew: about 2,300 trainings, an hour and more; goes on where it was
	$(BIN)/python benchmarks/gate.py --set att --models 66 --originals 50 --between 8 --runs 16 --train-only
	$(BIN)/python benchmarks/gate.py --set drawn --blocks 5 --models 17 --originals 17 --runs 16 --train-only \
	  --method remix --method random_mask --method kookmin --method salun --method finetune
	$(BIN)/python benchmarks/banks.py build

pictures: $(VENV)/developed  ## the console's screenshots in the documentation, made by its tests
	PICTURES=docs/images $(BIN)/python -m pytest -q tests/operators/test_browser.py

docs: $(VENV)/developed  ## the documentation as pages, in build/docs
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

benchmarks: $(VENV)/developed  ## the figures in the README, quickly
	@$(BIN)/python -m pip install -qq --progress-bar off -c constraints.txt -e '.[dev,benchmarks]'
	@for script in benchmarks/*.py; do $(BIN)/python $$script --quick || exit 1; done

findings:  ## do our dependencies still behave as docs/parts.md says? FINDINGS='findings/fsspec-*' for a part, RESUME=1 to go on; needs no environment
	@mkdir -p $(dir $(FOUND)); touch $(FOUND); out=$$(mktemp); good=0; missing=0; changed=0; for script in $(FINDINGS); do \
	  key="$$($(PYTHON) --version) $$(sha256sum $$script)"; \
	  if [ "$(RESUME)" ] && grep -qxF "$$key" $(FOUND); then echo "found before   $$script"; good=$$((good + 1)); continue; fi; \
	  timeout 1800 $$script >$$out 2>&1; case $$? in \
	    0) echo "as found       $$script"; echo "$$key" >>$(FOUND); good=$$((good + 1)) ;; \
	    2) echo "not installed  $$script"; missing=$$((missing + 1)) ;; \
	    124) echo "TOO LONG       $$script"; changed=$$((changed + 1)) ;; \
	    *) echo "CHANGED        $$script"; sed 's/^/    /' $$out; changed=$$((changed + 1)) ;; \
	  esac; done; rm -f $$out; \
	  echo "$$good as found, $$changed changed, $$missing not installed"; [ $$changed -eq 0 ] && [ $$missing -eq 0 ]

constraints: $(VENV)/developed  ## write constraints.txt anew: the newest versions that go together
	$(BIN)/python .ci/dependencies.py constraints

audit-dependencies: $(VENV)/developed  ## known vulnerabilities of what constraints.txt names
	$(BIN)/python .ci/dependencies.py audit

sbom: $(VENV)/developed  ## the bill of materials of what is installed (CycloneDX), in dist/
	@mkdir -p dist
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --mc-type application -o dist/sbom.cdx.json

package: $(VENV)/developed  ## wheel and source distribution, in dist/
	$(BIN)/python -m build --outdir dist

image:  ## a container for CPUs (needs a Docker engine)
	docker build --file deploy/docker/Dockerfile --target cpu --tag expunge:cpu .

image-cuda:  ## a container for NVIDIA GPUs (needs a Docker engine)
	docker build --file deploy/docker/Dockerfile --target cuda --tag expunge:cuda .

clean:  ## remove what the demo and `make serve` made; the environment stays
	rm -rf var build dist mutants *.egg-info

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Expected Python 3.11 or later, got " \
	  + sys.version.split()[0] + "; run make PYTHON=/path/to/python3.11 …")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (about two minutes the first time) …"
	@$(BIN)/python -m pip install -qq --progress-bar off -c constraints.txt -e .
	@touch $@

$(VENV)/developed: $(VENV)/installed
	@$(BIN)/python -m pip install -qq --progress-bar off -c constraints.txt -e '.[dev]'
	@touch $@
