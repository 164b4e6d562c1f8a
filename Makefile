# Two commands: `make demo` runs the main job, `make test` the tests. Each makes .venv if it is not there.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test lint types readme clean

demo: $(READY)
	$(RUN) -m models.demo

test: $(READY)
	$(RUN) -m pytest -n 2 --dist loadscope -q

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)
	$(VENV)/bin/mypy

readme: $(READY)
	$(RUN) tools/check_readme.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,torch,demo,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
