# make demo: install into .venv, draw faces, train both stages briefly, super-resolve LR/; all its files are in demo/.
# make test: install into .venv, with requirements-dev.txt, and run the tests.
# make fake-cuda: both trainers on fake CUDA tensors, without a GPU; about a minute; not part of `make test`.
# make soak: about 7 minutes of kills, malicious files and load; not part of `make test`.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --disable-pip-version-check --quiet
RUN = .venv/bin/python

.PHONY: demo test fake-cuda soak lint clean

demo: .venv/.installed
	PYTHON=$(RUN) bash recipes/demo.sh

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 8

fake-cuda: .venv/.installed-dev
	$(RUN) tests/fake_cuda.py

soak: .venv/.installed-dev
	$(RUN) tests/soak/kill.py
	$(RUN) tests/soak/hostile.py
	$(RUN) tests/soak/load.py

lint: .venv/.installed-dev
	$(RUN) -m ruff check .

.venv/.installed: requirements.txt
	$(PYTHON) -m venv .venv
	@echo "installing PyTorch and the other requirements into .venv: several GB, some minutes"
	$(PIP) -r requirements.txt
	@touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	$(PIP) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf demo .venv
