# Everything starts here. Each target makes its own environment first; a second call finds it ready.
#   PYTHON=python3.12   the interpreter to build on (3.10 to 3.13)
#   TORCH_INDEX=URL     where torch comes from; without it pip's sources: the CPU build where they hold it and there is no GPU
#   ARGS="..."          passed on to pytest, bitvla demo, bitvla bench or bitvla prove
PYTHON ?= python3
ARGS ?=
export PYTHON TORCH_INDEX

# One machine, one graph: nobody else's nodes, and every message field checked.
TEST_ENVIRONMENT = ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_PYTHON_CHECK_FIELDS=1 OMP_NUM_THREADS=2

# Not all files: importing Triton after Mesa's software renderer crashes, since both bring an LLVM.
LIBERO_TESTS = $(shell grep -l mark.libero test/*.py)

REQUIREMENTS = constraints.txt setup.cfg pyproject.toml scripts/environment.sh scripts/check_system.py
BUILD = setup.py package.xml CMakeLists.txt $(wildcard cmake/* msg/* srv/* action/* bitvla_ros/ternary/kernel/*)

.PHONY: help demo test test-libero test-lerobot test-colcon test-kilted test-jazzy lint bench prove clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## */\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: .venv/complete  ## watch the expert, then BitVLA, drive a simulated arm through a ROS graph
	.venv/bin/bitvla demo $(ARGS)

test: .venv/complete  ## the tests
	$(TEST_ENVIRONMENT) .venv/bin/python -m pytest -m "not libero and not lerobot" -n 2 --dist loadgroup $(ARGS)

test-libero: .venv-libero/complete  ## the tests of the optional extra LIBERO (assets in ../shared/libero_assets)
	$(TEST_ENVIRONMENT) MUJOCO_GL=osmesa .venv-libero/bin/python -m pytest -m libero $(LIBERO_TESTS) $(ARGS) < /dev/null

test-lerobot: .venv/complete .venv-lerobot/complete  ## the real LeRobot 0.6 opens our datasets (on PYTHON=python3.12 or newer: 5 GB)
	$(TEST_ENVIRONMENT) BITVLA_LEROBOT_PYTHON=$(CURDIR)/.venv-lerobot/bin/python .venv/bin/python -m pytest -m lerobot test/test_lerobot.py $(ARGS)

test-colcon: test-kilted test-jazzy  ## build with pip and colcon against two releases of ROS 2, outside the checkout, and smoke-test

test-kilted test-jazzy: test-%: .venv-%/complete
	scripts/test_colcon.sh $*

lint: .venv/complete  ## ruff, and mypy on everything but nodes/
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: .venv/complete  ## how long a chunk takes here, and where the time goes (ARGS=--kernels: the ternary products)
	.venv/bin/bitvla bench $(ARGS)

prove: .venv/complete  ## break a real graph and measure how soon the arm stops: every proof at full length, hours (ARGS="--only seam": one)
	.venv/bin/bitvla prove --trials 300 $(ARGS)

clean:  ## remove the environments and everything built
	rm -rf .venv .venv-libero .venv-lerobot .venv-kilted .venv-jazzy build dist install log *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf bitvla_ros/msg bitvla_ros/srv bitvla_ros/action bitvla_ros/*.so bitvla_ros/ternary/*.so

.venv/complete: $(REQUIREMENTS) $(BUILD)
	@scripts/environment.sh .venv main

.venv-libero/complete: $(REQUIREMENTS) $(BUILD)
	@scripts/environment.sh .venv-libero libero

.venv-%/complete: $(REQUIREMENTS)
	@scripts/environment.sh .venv-$* $*
