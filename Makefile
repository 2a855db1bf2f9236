# Everything one does with the project; CI runs the same targets. What is missing (nats-server, PostgreSQL, Prometheus, aimock
# and an MCP server for the tests, cargo-deny, validators) is found or fetched by the scripts in scripts/, which say what they did.

.DEFAULT_GOAL := help

CARGO ?= cargo
# More words for `turnwise dev`: make run ARGS="--listen 127.0.0.1:9000"
ARGS ?=

.PHONY: help
help: ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# The development profile: no waiting for link-time optimisation, and what `make test` built is used again. For load, build
# with `cargo build --release`.
.PHONY: run
run: ## Build and start everything in one process: a web chat page on http://127.0.0.1:8080; Ctrl-C stops it
	@TURNWISE_NATS_SERVER=$$(scripts/nats-server.sh) && export TURNWISE_NATS_SERVER && \
	exec $(CARGO) run --locked -- dev $(ARGS)

.PHONY: test
test: ## All tests, against a real nats-server, SQLite, PostgreSQL and an MCP server
	@TURNWISE_PYTHON=$$(scripts/python.sh) && export TURNWISE_PYTHON && \
	TURNWISE_NODE=$$(scripts/node.sh) && export TURNWISE_NODE && \
	TURNWISE_NATS_SERVER=$$(scripts/nats-server.sh) && export TURNWISE_NATS_SERVER && \
	TURNWISE_AIMOCK=$$(scripts/aimock.sh) && export TURNWISE_AIMOCK && \
	TURNWISE_MCP_EVERYTHING=$$(scripts/mcp-everything.sh) && export TURNWISE_MCP_EVERYTHING && \
	TURNWISE_PYTHON_TOOLS=$$(scripts/python-tools.sh) && export TURNWISE_PYTHON_TOOLS && \
	browser=$$(scripts/chromium.sh) && TURNWISE_CHROMIUM=$${browser%%[[:space:]]*} && export TURNWISE_CHROMIUM && \
	TURNWISE_CHROMEDRIVER=$${browser##*[[:space:]]} && export TURNWISE_CHROMEDRIVER && \
	TURNWISE_PROMETHEUS=$$(scripts/prometheus.sh) && export TURNWISE_PROMETHEUS && \
	postgres=$$(scripts/postgres.sh) && export PATH="$$postgres:$$PATH" && \
	$(CARGO) test --locked --no-fail-fast

# Settable, as is what scripts/bench.sh names: make bench SHAPES="s1 s3" DATABASES="sqlite" SYNCS="interval"
export SHAPES DATABASES SYNCS BENCH_ARGS
.PHONY: bench
bench: ## Load on deployments of its own, SQLite and PostgreSQL; a report in Markdown
	@scripts/bench.sh

# Larger or smaller: make chaos CHAOS_KILLS=20 CHAOS_TURNS=5000 CHAOS_CHATS=200 CHAOS_SECONDS=90; TURNWISE_TEST_SEED repeats a
# run's choices. What was found with which figures: docs/faults.md.
CHAOS_KILLS ?= 120
CHAOS_TURNS ?= 100000
CHAOS_CHATS ?= 2000
CHAOS_SECONDS ?= 1300
.PHONY: chaos
chaos: ## Kill, pause and restart everything at random under load, then judge what is left: about 25 minutes
	@TURNWISE_NATS_SERVER=$$(scripts/nats-server.sh) && export TURNWISE_NATS_SERVER && \
	postgres=$$(scripts/postgres.sh) && export PATH="$$postgres:$$PATH" && \
	CHAOS_KILLS=$(CHAOS_KILLS) CHAOS_TURNS=$(CHAOS_TURNS) CHAOS_CHATS=$(CHAOS_CHATS) CHAOS_SECONDS=$(CHAOS_SECONDS) \
	$(CARGO) test --locked --test chaos -- --nocapture

# In all, shared by the targets; one of them: make fuzz FUZZ_TARGETS=chat
FUZZ_SECONDS ?= 900
FUZZ_TARGETS ?=
.PHONY: fuzz
fuzz: ## Random bytes for everything that reads bytes from outside; what was found so far: docs/fuzzing.md
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz.sh $(FUZZ_TARGETS)

.PHONY: check
check: ## Formatting, lints, documentation, licences and sources of dependencies, deploy/; warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	deny=$$(scripts/cargo-deny.sh) && "$$deny" check licenses bans sources
	scripts/check-deploy.sh

.PHONY: screenshots
screenshots: ## The pictures in docs/images, of the console after a scripted run, by a real Chromium
	@TURNWISE_NATS_SERVER=$$(scripts/nats-server.sh) && export TURNWISE_NATS_SERVER && \
	browser=$$(scripts/chromium.sh) && TURNWISE_CHROMIUM=$${browser%%[[:space:]]*} && export TURNWISE_CHROMIUM && \
	TURNWISE_CHROMEDRIVER=$${browser##*[[:space:]]} && export TURNWISE_CHROMEDRIVER && \
	TURNWISE_SCREENSHOTS=$(CURDIR)/docs/images $(CARGO) test --locked --test console -- --exact \
		an_operator_takes_over_redrives_and_settles_in_a_browser

.PHONY: bench-commit
bench-commit: ## Turns and deliveries per second that the databases alone take, from 1, 32 and 512 callers at once
	@postgres=$$(scripts/postgres.sh) && export PATH="$$postgres:$$PATH" && \
	$(CARGO) bench --locked --bench '*'

.PHONY: docs
docs: ## The library's documentation, in target/doc/turnwise/index.html
	@$(CARGO) doc --locked --no-deps
	@echo target/doc/turnwise/index.html

.PHONY: fmt
fmt: ## Format the code
	@$(CARGO) fmt

.PHONY: clean
clean: ## Remove what was built and fetched; the data of `make run` in .turnwise stays
	$(CARGO) clean
	rm -rf .tools
