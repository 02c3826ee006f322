# Every target works on its own from a fresh clone: it makes .venv first, or again when the lock has changed.
PYTHON ?= python3
PIP_ARGS ?=
ONLY ?=

TORCH := torch==2.13.0
BIN := .venv/bin
READY := .venv/.installed
COLAB := .venv-colab/.installed
PYTEST := $(BIN)/python -m pytest
# One thread to each of two processes; tests/browser, which take longest, come first.
TWO := -n 2 --dist loadscope --no-loadscope-reorder
COURSE := $(BIN)/python -m picollm_lite.course $(if $(ONLY),--only $(ONLY))

# pip would compile all that it installs, for a minute. Python compiles the fraction that the course imports when it does.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help course test lab check data results store slides publish screenshots lock chromium

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile
	@echo
	@echo "PYTHON=python3.12    the Python, 3.11 to 3.13, that .venv is made from (default: python3)"
	@echo "ONLY=\"01 04\"         only these notebooks (course, results, store, slides)"
	@echo "REPO=owner/name       your repository on GitHub (publish)"
	@echo "PIP_ARGS=...         more arguments for pip. On Linux without an NVIDIA GPU this saves gigabytes:"
	@echo "                     make course PIP_ARGS=\"--extra-index-url https://download.pytorch.org/whl/cpu\""

course: $(READY) ## execute every notebook in order; executed copies, HTML pages, checkpoints and a report card go to outputs/
	@$(COURSE)

test: check chromium $(COLAB) ## everything that CI runs: check, the other tests, then every notebook cell by cell
	$(PYTEST) $(TWO) tests --ignore=tests/unit
	$(PYTEST) -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks/

lab: $(READY) ## JupyterLab on the notebooks
	cd notebooks && ../$(BIN)/python -m jupyterlab

check: $(READY) ## lint and unit tests only
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(PYTEST) $(TWO) tests/unit

data: $(READY) ## rebuild everything in data/
	$(BIN)/python -m picollm_lite.build

results: $(READY) ## run the course with five seeds (75 minutes), write data/results.md and data/seeds.jsonl
	$(BIN)/python -m picollm_lite.results $(if $(ONLY),--only $(ONLY))

store: $(READY) ## for authors: bring each .ipynb up to its .py, execute it and store the outputs
	@$(COURSE) --store

slides: $(READY) ## one reveal.js deck a notebook, from the stored outputs, to outputs/slides/ (builds without a network)
	@$(BIN)/python -m picollm_lite.slides $(if $(ONLY),--only $(ONLY))

publish: $(READY) ## for instructors: badges, and a first cell for Colab, in the notebooks and the README; needs REPO=owner/name
	@$(BIN)/python -m picollm_lite.publish "$(REPO)"

screenshots: chromium ## for authors: pictures of the widgets in the notebooks, to outputs/screenshots/
	PICOLLM_QUICK=40 PICOLLM_SCREENSHOTS=outputs/screenshots $(PYTEST) tests/browser/test_notebooks.py

# The browser tests are skipped where this finds and installs none.
chromium: $(READY)
	@$(BIN)/python tests/browser/chromium.py

# setuptools comes from the lock too, so the last step needs no network.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null || \
	  { echo "error: the course needs Python 3.11 to 3.13, but $(PYTHON) is: $$($(PYTHON) --version 2>&1 | head -n 1); try make PYTHON=python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --no-compile $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

# Colab's versions in front of all else in .venv, so that the course is tested with both.
$(COLAB): $(READY) tests/colab/requirements.txt
	$(BIN)/python -m venv --clear --without-pip .venv-colab
	$(BIN)/python -m pip --python .venv-colab/bin/python install --no-deps --no-compile -r tests/colab/requirements.txt
	@folder='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  main=$$($(BIN)/python -c "$$folder"); colab=$$(.venv-colab/bin/python -c "$$folder"); \
	  echo "import site; site.addsitedir('$$main')" > "$$colab/main.pth"
	@touch $@

# Python 3.11, so that every version chosen exists for 3.11 too. CUDA packages stay out:
# torch pins its own on Linux, and elsewhere they do not exist.
lock: ## for authors, on Linux with Python 3.11: resolve pyproject.toml's ranges into requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "error: make lock needs Python 3.11" >&2; exit 1; }
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *sum(p["optional-dependencies"].values(), []), sep="\n")' > "$$dir/ranges"; \
	$(PYTHON) -m venv "$$dir/venv"; \
	"$$dir/venv/bin/python" -m pip install $(PIP_ARGS) --upgrade $(TORCH) setuptools -r "$$dir/ranges"; \
	echo '# Exact versions for make, environment.yml and CI. Made by `make lock` from the ranges in pyproject.toml.' > "$$dir/lock"; \
	"$$dir/venv/bin/python" -m pip freeze --all --exclude pip > "$$dir/frozen"; \
	sed -E -e 's/\+[A-Za-z0-9.]+$$//' -e '/^(nvidia-|cuda-|triton)/d' "$$dir/frozen" >> "$$dir/lock"; \
	cp "$$dir/lock" requirements.lock
