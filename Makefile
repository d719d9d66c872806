# The first run needs only Python 3.10 or newer with venv: it makes its own virtual environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# The virtual environment is the ROS prefix of the pip-installed rclpy (docs/ros_without_ros.md).
export AMENT_PREFIX_PATH := $(abspath $(VENV))$(if $(AMENT_PREFIX_PATH),:$(AMENT_PREFIX_PATH))
export PYTHONPATH := $(CURDIR):$(CURDIR)/training$(if $(PYTHONPATH),:$(PYTHONPATH))

# Libraries with thread pools of their own slow each other down; a test needs one thread.
test: export OMP_NUM_THREADS := 1

.PHONY: test lint

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -m "not slow and not gpu"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.test: requirements/test.txt requirements/runtime.txt requirements/ros.txt requirements/training.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements/test.txt
	touch $@
