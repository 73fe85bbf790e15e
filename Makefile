# make submission     score the sample clips, or VIDEOS=folder, into submission.csv
# make page           score VIDEOS=folder and write clips.html, with the faces, their scores over time and details
# make test           check style, imports and types, then run the quick tests (about five minutes on two cores)
# make test-slow      run the slow tests only; make test-all runs both
# make timing         measure the time of scoring VIDEOS=folder, and project it to 4,000 clips
# make faults         score damaged clips and cause machine faults: docs/faults.md; make soak scores 2,000 clips
# make bundle         make the dataset and notebook for Kaggle, with KAGGLE_USER=name
# make rehearsal      run the bundle offline on a copy of Kaggle's file system, on VIDEOS=folder; IMAGES=2026 picks one
# make screenshots    make the README's pictures of the report anew (needs chromium, chromedriver and selenium)
# make lock           update both lock files to the newest allowed versions (needs uv: pip install uv)
# make clean          delete files that make created, except results; make clean-results deletes the results
PYTHON ?= python3
VIDEOS ?= samples
KAGGLE_USER ?=
BIN := .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
UV_COMPILE = uv pip compile pyproject.toml --universal --python-version 3.10 --fork-strategy fewest \
	--generate-hashes --no-annotate --upgrade --custom-compile-command 'make lock' --quiet

.PHONY: submission page test test-slow test-all lint timing faults soak bundle rehearsal screenshots lock clean clean-results

submission: .venv/base
	$(BIN)/python kernel.py "$(VIDEOS)" --out submission.csv

page: .venv/base
	$(BIN)/python kernel.py "$(VIDEOS)" --out clips.csv --report clips.html

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/all
	$(BIN)/python -m pytest -n 2 -m slow

test-all: test test-slow

lint: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

timing: .venv/base
	$(BIN)/python tools/bench/time_kernel.py "$(VIDEOS)"

faults: .venv/all
	$(BIN)/python -m tests.faults --out docs

soak: .venv/all
	$(BIN)/python -m tests.faults --out docs --only soak

bundle: .venv/all
	$(if $(KAGGLE_USER),,$(error name your account on Kaggle: make bundle KAGGLE_USER=yourname))
	$(BIN)/python tools/make_bundle.py --user "$(KAGGLE_USER)" --out bundle

rehearsal: .venv/all
	$(BIN)/python tools/make_bundle.py --rehearsal --python 3.10 3.12 --out .rehearsal/bundle
	$(BIN)/python tools/rehearse.py "$(VIDEOS)" --bundle .rehearsal/bundle $(if $(IMAGES),--image $(IMAGES))

screenshots: .venv/all
	$(BIN)/python -m tests.screenshots --out docs

.venv/bin/python:
	@command -v "$(PYTHON)" >/dev/null || { echo "make: there is no $(PYTHON) here; install Python 3.10 or newer, or name one: make PYTHON=python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $$("$(PYTHON)" --version 2>&1) is too old; 3.10 or newer is needed, name one: make PYTHON=python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	"$(PYTHON)" -m venv --clear .venv

# Packages for scoring on the CPU. They are not compiled here, because that takes 17 MB and some seconds. Python
# compiles the modules that it imports.
.venv/base: requirements.lock .venv/bin/python
	$(PIP_INSTALL) --no-compile -r requirements.lock
	touch $@

# All packages: for GPU scoring, training, the tools and the tests.
.venv/all: requirements-all.lock .venv/base
	$(PIP_INSTALL) -r requirements-all.lock
	touch $@

lock:
	$(UV_COMPILE) -o requirements.lock
	$(UV_COMPILE) --all-extras -c requirements.lock -o requirements-all.lock

clean:
	rm -rf .venv .wheels .rehearsal bundle .pytest_cache .ruff_cache .mypy_cache

clean-results:
	rm -rf submission.csv predictions.csv .submission.csv.journal clips.*csv .clips.csv.journal clips.html clips.analyses
