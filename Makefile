# make report   set up and run the whole chain (CONFIG=config/vgg11.yaml for the real thing)
# make test     set up and run the tests
# make lint     set up and run ruff and mypy
# make gpu      replace MXNet's CPU build with the CUDA 11 build and its libraries (about 4 GB); undo with make clean
CONFIG ?= config/quickstart.yaml
WORKSPACE ?= artifacts
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
# Serialize set-ups: two pips at once damage the environment. pip inherits the lock, so it is held even if make is killed.
ALONE := exec 9<Makefile; if command -v flock >/dev/null 2>&1; then flock 9 || true; fi

.PHONY: report test lint gpu clean

report: $(INSTALLED)
	@$(BIN)/luigi --module tasks Report --config "$(CONFIG)" --workspace "$(WORKSPACE)" --local-scheduler
	@echo "to use luigi, luigid and vgg-predict in this shell: source $(VENV)/bin/activate"

test: $(INSTALLED)
	$(BIN)/python -m pytest $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Both packages own the folder `mxnet`, so uninstall one before installing the other; pip cannot express this.
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
	  else echo "Python 3.10, 3.11 or 3.12 with the venv module is required: install one (Debian, Ubuntu: apt install python3 python3-venv), or uv" >&2; exit 1; fi; \
	fi; \
	echo "installing the plugin and its dependencies (a minute or two the first time)"; \
	$(PIP) uninstall --quiet --yes mxnet-cu117 2>/dev/null || true; \
	$(PIP) install --quiet --editable '.[test]'; \
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
