# Everything that a developer or a build machine runs. `make` alone lists it.

VENV   := .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check --quiet install
MINUTES := 10
SAMPLE  := 100
SEED    := 1
ONLY    :=
# Processes to share the tests out among: more than there are processors, as many tests wait; fewer for those that
# rest on time limits.
WORKERS := 4
QUIET_WORKERS := 3
EXTRAS := redis,postgresql,test
CODE   := cellcache backends migrations tests benchmarks

# Whoever runs out of tests takes over some of another's last: neighbours, which share fixtures, mostly stay together.
SHARED_OUT := --dist worksteal -n
# Else each of them, and each command that a test starts, would compile everything again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test quick lint servers test-suite test-wheel test-pythons soak mutants bench bench-quick pylibmc soak clean

help:  ## List what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.installed  ## See the main job on SQLite, without any server
	$(BIN)/cellcache demo

test: lint servers test-wheel test-suite  ## Everything, with real servers; installs those that are missing where it may

quick: $(VENV)/.installed-for-tests  ## The tests that need no server and little time
	$(BIN)/python -m pytest -q $(SHARED_OUT) $(WORKERS) -m "not servers and not slow and not wheel"

lint: $(VENV)/.installed-for-bench  ## ruff and mypy
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(CODE)

servers: $(VENV)/.installed-for-tests  ## Install the servers that the tests lack, or say in a line each what to install
	@packages="$$($(BIN)/python -m tests.servers --packages)"; [ -z "$$packages" ] || sh tests/apt_install.sh $$packages || true
	@$(BIN)/python -m tests.servers

test-suite: $(VENV)/.installed-for-tests  ## The tests alone, with the servers there are
	$(BIN)/python -m pytest $(SHARED_OUT) $(WORKERS) -m "not wheel and not quiet"
	$(BIN)/python -m pytest $(SHARED_OUT) $(QUIET_WORKERS) -m "not wheel and quiet"

# The folder that they run in holds no cellcache, so that what they import is what the wheel installed.
test-wheel: .venv-wheel/.created  ## The tests of packaging, migrations and command line against the built wheel
	rm -rf build
	.venv-wheel/bin/python -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir build/wheel .
	.venv-wheel/bin/python -m pip --disable-pip-version-check --quiet install "$$(echo build/wheel/*.whl)[$(EXTRAS)]"
	.venv-wheel/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --force-reinstall build/wheel/*.whl
	mkdir build/elsewhere
	cp -R pyproject.toml tests benchmarks docs $(wildcard *.md) build/elsewhere
	cd build/elsewhere && SOURCE_OF_WHEEL=$(CURDIR) ../../.venv-wheel/bin/python -m pytest $(SHARED_OUT) $(WORKERS) -m packaging

soak: $(VENV)/.installed-for-tests servers  ## Ten minutes under faults, or MINUTES=60; the report is in soak-results/
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --report soak-results

mutants: $(VENV)/.installed-for-tests servers  ## Which small changes no test notices: SAMPLE=100 ONLY=backends/redis.py SEED=1
	@$(BIN)/python -m tests.mutants --sample $(SAMPLE) --seed $(SEED) $(ONLY:%=--only %)

test-pythons: $(VENV)/.installed-for-tests  ## The quick tests under each further Python there is
	@for version in 3.11 3.12 3.13; do \
	    if [ "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = $$version ]; then \
	        continue; \
	    elif sh tests/find_python.sh $$version >/dev/null; then \
	        echo "Python $$version:"; \
	        $(MAKE) --no-print-directory quick VENV=.venv-$$version || exit; \
	    else \
	        echo "Python $$version: not found; the tests are SKIPPED there"; \
	    fi; \
	done

bench: $(VENV)/.installed-for-bench servers pylibmc  ## What a lookup costs, beside what else one could use; takes long
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.installed-for-bench servers pylibmc  ## Show that the benchmarks work; the figures mean little
	$(BIN)/python -m benchmarks --quick

# It is compiled here, and the benchmarks do without it where that fails.
pylibmc: $(VENV)/.installed-for-bench
	@$(BIN)/python -c 'import pylibmc' 2>/dev/null \
	    || { sh tests/apt_install.sh gcc libc6-dev libmemcached-dev python3-dev zlib1g-dev && $(PIP) pylibmc; } \
	    || echo "pylibmc could not be installed; the benchmarks leave it out"

clean:  ## Remove the environments and whatever was built
	rm -rf .venv .venv-* build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

# The stamps are older than pyproject.toml once that changes, and only then is anything installed again.
$(VENV)/.installed: pyproject.toml $(VENV)/.created
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-for-tests: pyproject.toml $(VENV)/.created
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-for-bench: $(VENV)/.installed-for-tests
	$(PIP) --editable '.[$(EXTRAS),bench]'
	@touch $@

%/.created:
	sh tests/make_venv.sh $(@D) $(filter 3.%,$(@D:.venv-%=%))
	@touch $@
