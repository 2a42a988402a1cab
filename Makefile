# make demo: install into .venv, draw faces, train both stages briefly, super-resolve LR/; all its files are in demo/.
# make test: install into .venv, with requirements-dev.txt, and run the tests.
# make soak: about 10 minutes of kills, hostile files and load; not part of `make test`.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --disable-pip-version-check --quiet
RUN = .venv/bin/python

.PHONY: demo test soak lint clean

demo: .venv/.installed
	rm -rf demo
	$(RUN) Datasets/make_demo.py --out demo/data
	$(RUN) train_h2l.py $(DEMO) $(DEMO_H2L)
	$(RUN) train.py $(DEMO) $(DEMO_SR)
	$(RUN) test.py --weights demo/sr.pth --output demo/Results --compare
	@echo
	@echo "The demo is done: drawn faces, a quarter of the paper's width, and a short schedule without the critic in stage 2."
	@echo "Open demo/Results/compare.png: each face of LR/ as it is, enlarged by bicubic interpolation, and super-resolved."

# Minutes on 2 cores instead of hours on a GPU: narrow networks, a weaker critic in stage 1, higher learning rates, and in
# stage 2 a warm start alone, without the critic and the alignment, which need far more updates to be of use.
DEMO = --data demo/data --out demo --width 16 --log-every 20
DEMO_H2L = --adversarial-weight 0.05 --generator-lr 1e-3 --epochs 1 --steps-per-epoch 400 --sample-every 200
DEMO_SR = --vgg-weights random --batch-size 8 --l1-weight 4 --generator-lr 2e-3 --beta1 0.9 --beta2 0.99 \
          --warm-start-steps 800 --epochs 4 --steps-per-epoch 200 --lr-decay 0.4 --lr-decay-epochs 1 --sample-every 400

test: .venv/.installed-dev
	$(RUN) -m pytest

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
