# make analyze   set up on first use, then the documented run
# make test      set up on first use, a browser and LMCache too, then format, lint, types and tests

PYTHON ?= python3
RUN := .venv/bin/python
STAMP := .venv/.complete
LMCACHE := .venv/.lmcache

.PHONY: setup browser analyze test format clean

setup: $(STAMP)

$(STAMP): requirements.txt requirements-cluster.txt constraints.txt tests/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $(STAMP)

$(LMCACHE): tests/requirements-lmcache.txt $(STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r tests/requirements-lmcache.txt
	@touch $(LMCACHE)

analyze: setup
	$(RUN) main.py --mode analyze

# Debian's, where a test of report.html would miss it and this may install it; elsewhere those
# tests say why they are skipped, and under CI=true fail.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	echo "No chromium is here, and none could be installed: report.html is not tried in a browser."

test: setup browser $(LMCACHE)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal --ignore tests/test_cluster.py
	$(RUN) -m pytest tests/test_cluster.py

format: setup
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
