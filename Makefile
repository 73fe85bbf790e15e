# make submission   score the sample clips, or VIDEOS=folder, into submission.csv
# make test         lint, format check and tests
PYTHON ?= python3
VIDEOS ?= samples
BIN := .venv/bin

.PHONY: submission test lint timing clean

submission: .venv/installed
	$(BIN)/python kernel.py "$(VIDEOS)" --out submission.csv

test: lint
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

timing: .venv/installed
	$(BIN)/python tools/time_kernel.py "$(VIDEOS)"

.venv/installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

clean:
	rm -rf .venv submission.csv predictions.csv
