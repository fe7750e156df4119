# A fresh Debian or Ubuntu needs: python3 python3-venv python3-dev gcc make
#
#   make demo    set up, then see an IOMMU at work and at fault
#   make test    set up, then everything that must hold: lint, types, tests, sanitizers
#   make live    set up, then boot real kernels on emulated IOMMUs, in QEMU
#   make bench   set up, then what a translation and an invalidation cost, beside their floors
#   make lib     the C core alone: build/libiommu_emu.a, to use with csrc/iommu_emu.h
#
# Everything lands in .venv/ and build/; `make clean` removes both. QEMU and kernels, which `make
# test` and `make live` fetch once, are in ~/.cache/iommu-emu (see `iommu-emu fetch --help`).

PYTHON ?= python3
VENV    = .venv
BIN     = $(VENV)/bin
SOURCES = $(shell find csrc iommu_emu devices acpi -type f \
            \( -name '*.[ch]' -o -name '*.def' -o -name '*.py' -o -name '*.pyi' -o -name '*.toml' \
               -o -name '*.sh' -o -name '*.html' -o -name '*.css' -o -name '*.js' -o -path '*/shim/*' \)) \
          setup.py pyproject.toml README.md
PYTEST_ARGS ?=

.PHONY: demo test live bench lib lint types tests sanitized clean

demo: $(VENV)/.installed
	$(BIN)/iommu-emu demo

test: lint types tests sanitized

live: $(VENV)/.tools
	$(BIN)/pytest tests/live $(PYTEST_ARGS)

bench: $(VENV)/.tools
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-columns=min,median,iqr,rounds $(PYTEST_ARGS)
	$(BIN)/iommu-emu bench

lib: build/libiommu_emu.a

CORE = $(filter-out csrc/bench/%,$(wildcard csrc/*.c csrc/*/*.c))

build/libiommu_emu.a: $(CORE:csrc/%.c=build/lib/%.o)
	rm -f $@
	$(AR) rcs $@ $^

build/lib/%.o: csrc/%.c $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.def)
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -g -fPIC -Wall -Wextra -Werror -c $< -o $@

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Against the installed package and from outside the checkout: mypy does not see through the
# package_dir of an editable install.
types: $(VENV)/.tools
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p iommu_emu

tests: $(VENV)/.tools
	$(BIN)/pytest -n 2 $(PYTEST_ARGS)

# The suite once more over a core built with AddressSanitizer and UBSan, but for what does not reach
# the core (packages, ACPI tables). Leaks are left to the core's own tests: CPython keeps memory at
# exit.
sanitized: $(VENV)/.tools build/sanitized/.built
	PYTHONPATH=build/sanitized LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 IOMMU_EMU_SANITIZED=1 \
	  $(BIN)/pytest -n 2 -p no:cacheprovider --ignore=tests/qemu --ignore=tests/acpi $(PYTEST_ARGS)

build/sanitized/.built: $(VENV)/.tools $(SOURCES)
	rm -rf build/sanitized build/sanitized-temp
	IOMMU_EMU_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-lib build/sanitized --build-temp build/sanitized-temp
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check .
	touch $@

# setuptools and cffi are here as well for the sanitizer build, which runs setup.py itself.
$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check '.[test]' 'setuptools>=65' wheel
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
