# make submission   score the sample clips, or VIDEOS=folder, into submission.csv
# make page         the same as a page that shows the faces and what the nets say of them: clips.html
# make test         lint, format check and tests
# make bundle       what is uploaded to Kaggle, for KAGGLE_USER=name
# make faults       what breaks machines and clips, done to the kernel: docs/faults.md; soak: 2,000 clips, docs/soak.png
# make rehearsal    the bundle on a copy of Kaggle's file system, without network, on VIDEOS=folder; IMAGES=2026 one of two
# make timing       what VIDEOS=folder costs, and 4,000 clips of the kind
PYTHON ?= python3
VIDEOS ?= samples
KAGGLE_USER ?=
BIN := .venv/bin

.PHONY: submission page test lint timing clean bundle rehearsal faults soak

submission: .venv/installed
	$(BIN)/python kernel.py "$(VIDEOS)" --out submission.csv

page: .venv/installed
	$(BIN)/python tools/show_clips.py "$(VIDEOS)" --out clips.html

test: lint
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

timing: .venv/installed
	$(BIN)/python tools/bench/time_kernel.py "$(VIDEOS)"

faults: .venv/installed
	$(BIN)/python -m tests.faults --out docs

soak: .venv/installed
	$(BIN)/python -m tests.faults --out docs --only soak

bundle: .venv/installed
	$(if $(KAGGLE_USER),,$(error name your account on Kaggle: make bundle KAGGLE_USER=yourname))
	$(BIN)/python tools/make_bundle.py --user "$(KAGGLE_USER)" --out bundle

rehearsal: .venv/installed
	$(BIN)/python tools/make_bundle.py --user rehearsal --out .rehearsal/bundle
	$(BIN)/python tools/rehearse.py "$(VIDEOS)" --bundle .rehearsal/bundle $(if $(IMAGES),--image $(IMAGES))

.venv/installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

clean:
	rm -rf .venv .wheels .rehearsal bundle submission.csv predictions.csv .submission.csv.journal clips.html
