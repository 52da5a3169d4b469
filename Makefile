# Everything lives in .venv; PYTHON picks the interpreter that makes it.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS ?= test,aot
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
# libtpu, which is here to compile ahead of time, would look for a chip.
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-all claims systems peers robustness lint docs wheel clean

define install
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
	@touch $@
endef

.venv/.demo: pyproject.toml constraints.txt
	$(call install,demo)

.venv/.test: pyproject.toml constraints.txt
	$(call install,$(EXTRAS))

.venv/.peers: pyproject.toml constraints.txt
	$(call install,peers)

.venv/.docs: pyproject.toml constraints.txt
	$(call install,docs)

demo: .venv/.demo
	$(BIN)/python -m jaxopt_ext demo

test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests

# What is thorough and slow too.
test-all: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

write_systems = mkdir -p .cache && $(BIN)/python -m jaxopt_ext systems --markdown \
	> .cache/systems.md && mv .cache/systems.md docs/systems.md

# What is kept is not run again; CLAIMS="minimize --stale", say, is passed on.
claims: .venv/.test
	$(BIN)/python -m benchmarks.claims $(CLAIMS); code=$$?; $(write_systems); exit $$code

systems: .venv/.test
	$(write_systems)

peers: .venv/.test .venv/.peers
	$(BIN)/python -m benchmarks.peers

# Every aggregator against every attack; goes on from where it was stopped.
robustness: .venv/.test
	$(BIN)/python -m benchmarks.robustness

lint: .venv/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

# The site, in site/index.html: the reference off the docstrings, the notebooks run.
docs: .venv/.docs
	PYTHONPATH=$(CURDIR) JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.1 NO_MKDOCS_2_WARNING=1 \
	$(BIN)/python -m mkdocs build --strict

wheel: .venv/.test
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf .venv .cache dist build site
