# Two commands: `make demo` runs the main job, `make test` the tests. Each makes .venv if it is not there.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

CXX ?= c++
SANITIZED := build/sanitized
EMULATED := build/emulated

# The oldest onnxruntime that is supported, with NumPy and nothing else: `validate --provider cpu@PYTHON` needs no more.
OLDEST := build/oldest
OLDEST_RUNTIME := onnxruntime==1.20.1

.PHONY: demo test lint types readme sanitize aarch64 oldest clean

demo: $(READY)
	$(RUN) -m models.demo

test: $(READY)
	$(RUN) -m pytest -n 2 --dist loadscope -q

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $$(find normfuse/native tests/native/emulation -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')

types: $(READY)
	$(VENV)/bin/mypy

readme: $(READY)
	$(RUN) tools/check_readme.py

# The tests of the native operators, and of the CUDA kernels emulated on the CPU, on a build that stops at an invalid access
# and at undefined behaviour.
sanitize: $(READY)
	$(VENV)/bin/cmake -S normfuse/native -B $(SANITIZED) -DNORMFUSE_SANITIZE=address,undefined
	$(VENV)/bin/cmake --build $(SANITIZED)
	$(VENV)/bin/cmake -S tests/native/emulation -B $(EMULATED) -DNORMFUSE_SANITIZE=address,undefined
	$(VENV)/bin/cmake --build $(EMULATED) --parallel 2
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	NORMFUSE_REQUIRE_NATIVE=1 NORMFUSE_OPS_LIBRARY=$(SANITIZED)/libnormfuse_ops.so NORMFUSE_EMULATED=$(EMULATED) $(RUN) -m pytest -n 2 -q tests/native

# The library for aarch64, by a cross compiler: that it compiles without a warning, NEON kernels included.
aarch64: $(READY)
	$(VENV)/bin/cmake -S normfuse/native -B build/aarch64 -DNORMFUSE_CUDA=OFF -DCMAKE_SYSTEM_NAME=Linux \
	-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	$(VENV)/bin/cmake --build build/aarch64

# A second onnxruntime for the test that runs both; NORMFUSE_SECOND_PYTHON=build/oldest/bin/python makes it run.
oldest: $(OLDEST)/.ready

$(OLDEST)/.ready:
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: $(OLDEST_RUNTIME) numpy
	$(OLDEST)/bin/python -c "import onnxruntime"
	touch $@

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,torch,demo,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
