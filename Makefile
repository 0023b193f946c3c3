# Two commands do all set-up: `make demo` and `make test`. Each makes .venv by itself when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := runs

# XLA maps its buffers anew every step; with huge pages (glibc, Linux) that costs a few page faults, not tens of thousands.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo test system bench scaling clean

# What some tests use of Debian's; they are skipped where it is missing, unless `make test SYSTEM=yes` installs it (as root).
# SYSTEM=yes also runs the tests in tests/kills, and those in tests/aot, for which it installs the compilers of
# accelerators (a gigabyte).
DEBIAN := chromium slurmctld slurmd slurm-client munge

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("alignax needs Python 3.11 or newer; set PYTHON=…") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[torch]'
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps zennit==0.5.1  # asks for torchvision, which the tests do without
	touch $@ $(VENV)/.run

$(VENV)/.aot: pyproject.toml | $(VENV)/.run
	$(BIN)/python -m pip install --quiet --editable '.[aot]'
	touch $@

demo: $(VENV)/.run
	$(BIN)/python -m launch.sweep --config=configs/demo.py --workdir=$(RUNS)/demo
	$(BIN)/python -m launch.report $(RUNS)/demo --tables

ifdef SYSTEM
test: system $(VENV)/.aot
test: export ALIGNAX_SYSTEM := required
test: export JAX_PLATFORMS := cpu
endif

system:
	dpkg --status $(DEBIAN) > /dev/null 2>&1 || { apt-get update --quiet=2 && \
	DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends $(DEBIAN); }

test: $(VENV)/.test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

# docs/speed.md. `make bench` on this CPU, `make -k bench DEVICE=cuda` on a GPU: there with small sizes, each benchmark
# within its share of ten minutes, in seconds.
DEVICE ?= cpu
BENCHMARKS := robustgrad_step robustgrad_eval attributions clip tldr_text_stage rtd_step retrieval
SHARES := robustgrad_step=190 robustgrad_eval=90 attributions=40 clip=90 tldr_text_stage=80 rtd_step=60 retrieval=30
LIMITS = $(if $(filter-out cpu,$(DEVICE)),--quick --budget $(patsubst $*=%,%,$(filter $*=%,$(SHARES))))

bench: $(BENCHMARKS:%=bench-%)
bench-%: $(VENV)/.test
	$(BIN)/python -m benchmarks.$* --device $(DEVICE) $(LIMITS) --json $(RUNS)/bench/$*-$(DEVICE).json

# docs/scaling.md: about an hour on two cores, less what runs/scaling has already.
scaling: $(VENV)/.aot
	$(BIN)/python -m benchmarks.scaling --cache $(RUNS)/scaling

clean:
	rm -rf $(VENV) build *.egg-info
