# make demo: install into .venv, draw faces, train both stages briefly, super-resolve LR/. Writes only under demo/.
# make test: install into .venv, with requirements-dev.txt, and run the tests.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --disable-pip-version-check --quiet
RUN = .venv/bin/python

.PHONY: demo test lint clean

demo: .venv/.installed
	rm -rf demo
	$(RUN) Datasets/make_demo.py --out demo/data
	$(RUN) train_h2l.py $(DEMO) $(DEMO_H2L)
	$(RUN) train.py $(DEMO) $(DEMO_SR)
	$(RUN) test.py --weights demo/sr.pth --output demo/Results --compare
	@echo
	@echo "The demo is done: a short warm start on drawn faces, at a third of the paper's width, without the paper's schedule."
	@echo "Open demo/Results/compare.png: each face of LR/ as it is, enlarged by bicubic interpolation, and super-resolved."

# A short schedule that ends within minutes on 2 cores. No critic (a warm start): at this length it would only add noise.
DEMO = --data demo/data --out demo --width 24 --log-every 20
DEMO_H2L = --pixel-weight 20 --epochs 1 --steps-per-epoch 300 --sample-every 300
DEMO_SR = --vgg-weights random --batch-size 16 --generator-lr 1e-3 --beta1 0.9 --beta2 0.99 \
          --epochs 3 --steps-per-epoch 250 --lr-decay-epochs 1 --warm-start-steps 750 --sample-every 250

test: .venv/.installed-dev
	$(RUN) -m pytest

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
