# make report   set up and run the whole chain (CONFIG=config/vgg11.yaml for the real thing)
# make test     set up and run the tests
# make lint     set up and run ruff and mypy
# make gpu      put MXNet's CUDA 11 build and its libraries in place of the CPU build (about 4 GB); make clean undoes it
CONFIG ?= config/quickstart.yaml
WORKSPACE ?= artifacts
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
# Of two at once, or after one whose pip outlived it, the second waits: two of pip in one environment damage it.
ALONE := exec 9<Makefile; if command -v flock >/dev/null 2>&1; then flock 9 || true; fi

.PHONY: report test lint gpu clean

report: $(INSTALLED)
	@$(BIN)/luigi --module tasks Report --config $(CONFIG) --workspace $(WORKSPACE) --local-scheduler
	@echo "to use luigi, luigid and vgg-predict in this shell: source $(VENV)/bin/activate"

test: $(INSTALLED)
	$(BIN)/python -m pytest $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# pip cannot express "in place of": both packages own the folder `mxnet`, so the one must go before the other comes.
gpu: $(INSTALLED)
	@set -e; $(ALONE); \
	$(PIP) install --quiet --editable '.[gpu]'; \
	$(PIP) uninstall --quiet --yes mxnet; \
	$(PIP) install --quiet --no-deps --force-reinstall mxnet-cu117==1.9.1
	@$(BIN)/python -m pipeline.runtime

$(INSTALLED): pyproject.toml Makefile tasks/luigi_vgg.py
	@set -e; $(ALONE); \
	if [ -e $@ ] && [ -z "$$(find $^ -newer $@)" ]; then exit 0; fi; \
	rm -f $@; good='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'; \
	if [ -x $(BIN)/python ] && $(BIN)/python -c "$$good" 2>/dev/null; then :; else \
	  rm -rf $(VENV); \
	  for python in python3.11 python3.12 python3.10 python3 python; do \
	    if $$python -c "$$good" >/dev/null 2>&1; then break; fi; python=; \
	  done; \
	  if [ -n "$$python" ]; then echo "setting up $(VENV) with $$($$python --version)"; $$python -m venv $(VENV); \
	  elif command -v uv >/dev/null 2>&1; then uv venv --quiet --seed --python 3.11 $(VENV); \
	  else echo "Python 3.10, 3.11 or 3.12 with its venv module is needed: install one (Debian, Ubuntu: apt install python3 python3-venv), or uv" >&2; exit 1; fi; \
	fi; \
	echo "installing the plugin and what it needs (a minute or two the first time)"; \
	$(PIP) uninstall --quiet --yes mxnet-cu117 2>/dev/null || true; \
	$(PIP) install --quiet --editable '.[test]'; \
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
