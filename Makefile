# make aurora  install into .venv, then fine-tune Aurora on the embedded data and write runs/aurora/report.html
# make test    install into .venv, then run every test
# Another interpreter or folder: make test PYTHON=python3.12 VENV=/tmp/venv

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PYTEST_ARGS ?= -q -n 2 --dist loadfile

.PHONY: aurora test lint clean
.DELETE_ON_ERROR:

aurora: $(VENV)/.weather
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml recipes/aurora.py \
		--config recipes/configs/aurora_quickstart.yaml --output_dir runs/aurora

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .

$(VENV)/.weather: $(VENV)/.python setup.cfg pyproject.toml constraints.txt
	$(PIP) -e ".[weather]"
	@touch $@

$(VENV)/.dev: $(VENV)/.weather
	$(PIP) -e ".[weather,vision,dev]"
	@touch $@

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "make: no $(PYTHON) here; install Python 3.10 or newer, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), hftune needs Python 3.10 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "make: $(PYTHON) could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
