# From a fresh clone: `make run` generates the examples, `make test` runs every test.
# Needs make, sh and Python 3.11 or newer; everything else comes through pip into .venv.

.DEFAULT_GOAL := help
.PHONY: help run test check bench chaos lock clean
.SUFFIXES:
# Two goals of one command line share .venv, and pip may not change it twice at once.
.NOTPARALLEL:
# make works in this checkout's .promptmill, whatever the shell names as promptmill's home.
unexport PROMPTMILL_HOME

PYTHON ?= $(shell for p in python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; \
	done)
# gpu where an NVIDIA driver answers, else cpu; `make ENGINE=cpu run` overrules it.
ENGINE := $(shell case "$$(nvidia-smi -L 2>/dev/null)" in (GPU*) echo gpu;; (*) echo cpu;; esac)
ifeq ($(filter $(ENGINE),cpu gpu),)
$(error ENGINE is cpu or gpu, not "$(ENGINE)")
endif

PIP := .venv/bin/python -m pip --disable-pip-version-check
RESULTS := out/results.jsonl
MODEL := smollm2-135m-instruct
WEIGHTS := .promptmill/weights/$(MODEL)/config.json
SETTINGS := .promptmill/promptmill.toml

# One stamp for each finished step. They are named after the engine, since the two engines cannot
# share an environment: where the other one was set up, .venv is made anew.
VENV := .venv/.$(ENGINE)-made
SETUP := .venv/.$(ENGINE)-installed
TESTS := .venv/.$(ENGINE)-tests-installed

ifeq ($(ENGINE),cpu)
LOCKS := requirements/core.txt requirements/cpu.txt
TEST_LOCKS := requirements/test.txt
RUN_NEEDS := $(SETTINGS) $(WEIGHTS)
TEST_NEEDS := $(WEIGHTS)
else
# The exact lists are the CPU engine's; for a GPU pip resolves what fits the driver's vLLM.
LOCKS :=
TEST_LOCKS :=
RUN_NEEDS := .promptmill
TEST_NEEDS :=
endif

help:
	@echo 'make run    set up, then generate examples/requests.jsonl into $(RESULTS)'
	@echo 'make test   set up, then run all tests'
	@echo 'make check  ruff, mypy, then all tests'
	@echo 'make bench  measure against calling the engine directly'
	@echo 'make chaos  break everything for some minutes, and count what was lost'
	@echo 'make lock   write requirements/*.txt anew from pyproject.toml'
	@echo 'make clean  remove .venv, out and caches; jobs and results in .promptmill stay'
	@echo 'make help   this list'
	@echo
	@echo 'ENGINE=cpu or ENGINE=gpu overrules what was found here: $(ENGINE).'
	@echo 'PYTHON=... names the interpreter that .venv is made with.'

run: $(SETUP) $(RUN_NEEDS)
	.venv/bin/promptmill run examples/requests.jsonl -o $(RESULTS)

# Rings apart: the first computes, one process a core; the second mostly waits; the engine has all cores for itself,
# and on a slow machine has taken more than twice as long.
test: $(TESTS) $(TEST_NEEDS)
	.venv/bin/pytest -n 2 tests/unit tests/database
	.venv/bin/pytest -n 4 --dist worksteal tests/integration tests/faults
	.venv/bin/pytest --timeout=900 tests/engine

check: $(TESTS) $(TEST_NEEDS)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@$(MAKE) --no-print-directory test

bench: $(TESTS) $(TEST_NEEDS)
	.venv/bin/python -m benchmarks

chaos: $(TESTS)
	.venv/bin/python -m benchmarks.chaos

# Hangs on no list, because it is what mends a list that no longer installs.
lock: | $(VENV)
	@.venv/bin/python -c 'import packaging' 2>/dev/null || $(PIP) install packaging
	.venv/bin/python requirements/lock.py

clean:
	rm -rf .venv out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf __pycache__ */__pycache__ */*/__pycache__ */*/*/__pycache__
	@if [ -e .promptmill ]; then \
		echo '.promptmill stays: it holds jobs, results and weights. To lose them: rm -r .promptmill'; \
	fi

# Every installing step takes this stamp away first and puts it back last. So a set-up that was
# interrupted has no stamp, and the next one starts from an empty .venv: a package whose files are
# half there counts as installed for pip. Stamps are touched in the order they hang on each other.
$(VENV):
	@if [ -z '$(PYTHON)' ] || \
		! '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo 'promptmill needs Python 3.11 or newer, found: $(or $(PYTHON),none).'; \
		echo 'Install one, or name one: make PYTHON=the/python3.11'; \
		exit 1; \
	fi >&2
	'$(PYTHON)' -m venv --clear .venv
	@touch $@

$(SETUP): $(VENV) pyproject.toml $(LOCKS)
	@rm -f $(VENV) $@
ifeq ($(ENGINE),cpu)
	@$(PIP) install --no-deps $(LOCKS:%=-r %) || { \
		echo; \
		echo 'The packages could not be installed. If pip found no torch with "+cpu" in its version:'; \
		echo 'it is on the CPU wheel index of PyTorch, whose address is on the Get Started page'; \
		echo 'of PyTorch under Pip and CPU. Do: export PIP_EXTRA_INDEX_URL=(that address)'; \
		echo 'and make again.'; \
		exit 1; \
	} >&2
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
else
	@$(PIP) install -e '.[gpu]'
	@.venv/bin/python -c 'import sys, torch; sys.exit(not torch.version.cuda)' || { \
		echo 'pip chose a torch without CUDA. Where it is told of the CPU wheel index of PyTorch'; \
		echo '(PIP_EXTRA_INDEX_URL, find-links: see pip config list) take that away; make again.'; \
		exit 1; \
	} >&2
endif
	@touch $(VENV) $@

$(TESTS): $(SETUP) $(TEST_LOCKS)
	@rm -f $(VENV) $(SETUP) $@
ifeq ($(ENGINE),cpu)
	@$(PIP) install --no-deps $(TEST_LOCKS:%=-r %)
else
	@$(PIP) install -e '.[gpu,test]'
endif
	@touch $(VENV) $(SETUP) $@

# Only its owner may read what people asked and were answered.
.promptmill:
	@mkdir -m 0700 $@

# Made only where there is none: afterwards it is its owner's file.
$(SETTINGS): | .promptmill
	@umask 077 && echo 'model = "$(MODEL)"' > $@.new && mv $@.new $@

# The folder appears whole or not at all, so one file in it stands for all.
$(WEIGHTS): | $(SETUP) .promptmill
	@.venv/bin/python -m workers.small_model $(@D)
