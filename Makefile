# The first run needs only Python 3.11 or newer with venv; everything else comes into the virtual environment.
VENV ?= .venv
PYTHON ?= python3
OUTPUT ?= out/demo
BIN := $(VENV)/bin
# The virtual environment is the ROS prefix of the pip-installed rclpy (docs/how-to/ros_without_ros.md).
export AMENT_PREFIX_PATH := $(abspath $(VENV))$(if $(AMENT_PREFIX_PATH),:$(AMENT_PREFIX_PATH))
export PYTHONPATH := $(CURDIR):$(CURDIR)/training$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: help docs demo demo-data demo-model test test-slow test-gpu lint bench clean

help:
	@echo "make demo       see a vehicle being localized: index, node, drive, report (results in $(OUTPUT))"
	@echo "make test       lint and all tests that need neither a GPU nor long"
	@echo "make test-slow  the tests that take longer than a minute each"
	@echo "make test-gpu   the tests that need an NVIDIA GPU"
	@echo "make docs       the documentation as a site (out/docs)"
	@echo "make bench      the benchmarks, each with its limits"

demo: $(VENV)/.demo
	$(BIN)/python -m unifygeo_ros.cli demo --output $(OUTPUT)

# Libraries with thread pools of their own slow each other down; a test needs one thread.
test test-slow test-gpu: export OMP_NUM_THREADS := 1

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.test
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Each prints its numbers beside their limits (docs/measurements/benchmarks.md) on a machine that does nothing else; all of them run, and the
# last line says which missed one. sequence_table.py, which needs drives, is docs/explanation/sequences.md's; ekf_drive.py, which needs
# robot_localization, too, is docs/reference/node.md's.
BENCHMARKS := render_towns training_stages fix index_search index_build tracking long_replay node_load
bench: $(VENV)/.test
	@missed=; for name in $(BENCHMARKS); do \
		echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || missed="$$missed $$name"; done; \
	if [ -n "$$missed" ]; then echo "missed a limit or failed:$$missed"; exit 1; fi

# Everything that ships with the demo, from seeds. The town (seed 1000 and above) is never trained on.
demo-data: $(VENV)/.test
	rm -rf demo/drive
	$(BIN)/python -m unifygeo_training.cli towns drive --seed 1000 --length-m 600 \
		--jpeg-quality 88 --orthophoto-jpeg-quality 90 --output demo/drive
	cd demo && find drive localizer.yaml -type f | LC_ALL=C sort | xargs sha256sum > SHA256SUMS

# About 85 minutes on two cores; the recipe, its numbers and what varies are in docs/how-to/training.md.
TRAIN := $(BIN)/python -m unifygeo_training.cli
demo-model: $(VENV)/.test
	$(TRAIN) towns render --seeds 0:96 --pairs 400 --output out/towns --workers 2
	$(TRAIN) towns render --seeds 900:902 --pairs 320 --output out/towns-validation --workers 2
	$(TRAIN) fit training/configs/towns_atto.yaml --data out/towns --output out/runs/towns-atto
	$(TRAIN) calibrate out/runs/towns-atto/last.pt out/towns-validation/town_00900 out/towns-validation/town_00901 \
		--output out/runs/calibration.json
	rm -rf models/towns-atto
	$(TRAIN) export out/runs/towns-atto/last.pt --output models/towns-atto --compact --licence Apache-2.0 \
		--calibration out/runs/calibration.json

docs: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements/docs.txt
	$(BIN)/sphinx-build -W --keep-going -q docs out/docs
	@echo "out/docs/index.html"

clean:
	rm -rf $(VENV) out

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(VENV)/bin/python requirements/runtime.txt requirements/ros.txt
	$(BIN)/python -m pip install --quiet -r requirements/runtime.txt -r requirements/ros.txt
	touch $@

$(VENV)/.test: $(VENV)/bin/python requirements/test.txt requirements/runtime.txt requirements/ros.txt requirements/training.txt
	$(BIN)/python -m pip install --quiet -r requirements/test.txt
	touch $@
