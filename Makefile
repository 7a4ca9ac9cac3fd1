# The two commands of the README are `make train` and `make test`. Each sets itself up; no environment needs to be active.

# Tiny models gain nothing from many threads, and lose where a container shows more cores than it grants.
export OMP_NUM_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 4 ] && echo $$n || echo 4)

.PHONY: help train test test-slow check docs bench

help:
	@echo "make train      five CoLoGen stages on a tiny FLUX, then a report with pictures: runs/tiny/report/"
	@echo "make test       the whole suite, without what is marked slow"
	@echo "make test-slow  the tests marked slow"
	@echo "make check      format, lint, types, imports, architecture"
	@echo "make docs       the documentation, built strictly into site/"
	@echo "make bench      the benchmarks"

# Not having torchvision is fine.
train: export TRANSFORMERS_VERBOSITY ?= error
train:
	@scripts/setup cologen
	.venv/bin/python -m recipes.cologen.train --config tiny --stage all --output runs/tiny

test test-slow: OMP_NUM_THREADS = 1

test:
	@scripts/test

test-slow:
	@scripts/test -m slow

check docs bench:
	@scripts/$@
