# Every target sets itself up on a fresh clone; override with PYTHON=/path/to/python, VENV=folder.

# glibc hands each large block back to the kernel when a tensor is freed, and on a CPU the faults of
# taking it again cost more than the small models' arithmetic.
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 34359738368

VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Debian's python3 comes without ensurepip, and pyenv's shims exist for versions that do not run,
# so a candidate is tried and not just looked up.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& echo "$$p" && break; done)

.PHONY: demo test bench bench-cuda speed-report lint install clean

demo: $(INSTALLED)
	$(BIN)/python -m diffcache demo $(ARGS)

test: $(INSTALLED)
	$(BIN)/pytest $(ARGS)

bench: $(INSTALLED)
	$(BIN)/pytest bench $(ARGS)

# What needs a GPU, in at most ten minutes; what it measures is appended to bench/results at once.
bench-cuda: $(INSTALLED)
	$(BIN)/python bench/on_cuda.py $(ARGS)

speed-report: $(INSTALLED)
	$(BIN)/python bench/speed_report.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	$(or $(PYTHON),$(error diffcache needs Python >= 3.10 with venv and ensurepip on PATH)) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info
