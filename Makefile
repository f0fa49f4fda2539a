PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.run-stamp
TEST_STAMP := $(VENV)/.test-stamp
OPEN_CLIP := open_clip_torch==3.3.0
UV := uv>=0.9
COSMIC_RAY := cosmic-ray>=8.4,<9
PYTEST_COV := pytest-cov>=7,<8
ATHERIS := atheris>=3,<4
PIP_AUDIT := pip-audit>=2.9,<3
SELENIUM := selenium>=4.25,<5
# Versions with which the tests passed; `make lock` looks for newer ones.
LOCK := tests/constraints.txt
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# Python keeps the modules that it has compiled: the tests start some hundred processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo pretrain study study-real env test test-page test-slurm slow check format docs help \
	coverage mutants fuzz lock licenses audit release
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:[^#]*## /\t/'

$(RUN_STAMP): requirements.txt pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -c $(LOCK) -e .
	@touch $@

# libtpu, for the test of `sammi compile`, lies apart: beside JAX it would make every command look
# for a TPU first and say that there is none. Its version is that of the extra "tpu".
LIBTPU = import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["tpu"][0])

# open_clip_torch is wanted for one data file, CLIP's vocabulary; its own requirements are not.
$(TEST_STAMP): $(RUN_STAMP)
	$(PIP_INSTALL) -c $(LOCK) -e ".[dev]"
	$(PIP_INSTALL) --no-deps "$(OPEN_CLIP)"
	$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/tpu \
		"$$($(BIN)/python -c '$(LIBTPU)')"
	@touch $@

env: $(TEST_STAMP)  ## the virtual environment .venv with everything that the tests need

demo: $(RUN_STAMP)  ## train and compare the models on OpenShapes; images and a table in runs/demo
	$(BIN)/python examples/demo.py --workdir runs/demo

pretrain: $(RUN_STAMP)  ## train the small models that come with the package (hours)
	$(BIN)/python examples/pretrain.py --workdir runs/pretrain

study: $(TEST_STAMP)  ## measure what each part of SAM-MI is worth; writes docs/study.md (hours)
	$(BIN)/python examples/study.py --workdir runs/study

study-real: $(TEST_STAMP)  ## the same tables on ADE20K-150 and PC-59, with your weights: ARGS="--help"
	$(BIN)/python examples/study_real.py $(ARGS)

check: $(TEST_STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Three workers for two cores: some tests wait for processes of their own.
test: check  ## lint, types and the fast tests
	$(BIN)/python -m pytest -n 3 --dist worksteal

# Chromium is not Python's: where it is missing, Debian's packages are installed.
test-page: $(TEST_STAMP)  ## the page of `sammi serve`, in a browser (installs Chromium if it is missing)
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		{ $(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends chromium chromium-driver; }
	$(PIP_INSTALL) "$(SELENIUM)"
	$(BIN)/python -m pytest -m page tests/test_page.py

slow: $(TEST_STAMP)  ## the long tests: real sizes, whole training runs
	XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" \
		$(BIN)/python -m pytest -m slow

test-slurm: $(TEST_STAMP)  ## the Slurm script under a real Slurm (apt-get install slurm-wlm munge)
	tests/slurm/cluster.sh $(BIN)/python -m pytest -m slurm tests/test_slurm.py

coverage: $(TEST_STAMP)  ## lines of the package that the fast tests run; fails below 90%
	$(PIP_INSTALL) -c $(LOCK) "$(PYTEST_COV)"
	$(BIN)/python -m pytest -n 3 --dist worksteal --cov=sammi_jax --cov-report=term --cov-fail-under=90

mutants: $(TEST_STAMP)  ## small faults put into heads, metrics, conversion and labels: do the tests find them?
	$(PIP_INSTALL) -c $(LOCK) "$(COSMIC_RAY)"
	$(BIN)/python tests/mutants.py $(ARGS)

SECONDS := 300
fuzz: $(TEST_STAMP)  ## cases that follow coverage, for one reader: make fuzz NAME=torch_pickle SECONDS=300
	$(PIP_INSTALL) "$(ATHERIS)"
	$(BIN)/python -m tests.fuzz.guided $(NAME) --seconds $(SECONDS)

docs: $(TEST_STAMP)  ## the documentation as a site, with the reference of Python and commands: site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(TEST_STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(TEST_STAMP)  ## newest versions of everything that the tests install, in tests/constraints.txt
	$(PIP_INSTALL) "$(UV)"
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --extra dev --no-annotate \
		--no-header --output-file $(LOCK) pyproject.toml

licenses: $(TEST_STAMP)  ## licenses of all that users install, in docs/licenses.md
	$(BIN)/python .ci/licenses.py docs/licenses.md

audit: $(TEST_STAMP)  ## known vulnerabilities of the locked versions (asks PyPI)
	$(PIP_INSTALL) "$(PIP_AUDIT)"
	$(BIN)/pip-audit --progress-spinner off --strict --no-deps --disable-pip \
		--requirement $(LOCK)

release: $(TEST_STAMP)  ## everything of a release but its publication: make release VERSION=X.Y.Z
	.ci/release "$(VERSION)" $(BIN)
