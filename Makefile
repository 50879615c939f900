# How pgcascade is built, installed and tested: make and cargo, nothing else. `make help` lists the targets.
# PG_CONFIG chooses the server as PostgreSQL people expect (default: Debian's 15, else the one in PATH); each major version
# is built into its own folder, because another server's headers would have the server bindings compiled again.
# DESTDIR goes before every installed path; the tests install into target/pgN/tree this way and never into the system.

PG_CONFIG ?= $(shell regress/cluster pg_config)
DESTDIR ?=
prefix ?= /usr/local
PROFILE ?= release
KEEP ?=
INSTALL ?= install

# Asked once, and only by the targets that need a server.
once = $(eval $(1) := $(2))$(2)
pgconfig = $(call once,pgconfig,$(shell command -v $(or $(PG_CONFIG),pg_config)))
major = $(call once,major,$(if $(pgconfig),$(shell $(pgconfig) --version | sed -n 's/^PostgreSQL \([0-9]*\).*/\1/p')))
pkglibdir = $(call once,pkglibdir,$(if $(pgconfig),$(shell $(pgconfig) --pkglibdir)))
sharedir = $(call once,sharedir,$(if $(pgconfig),$(shell $(pgconfig) --sharedir)))
version := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

built = $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
library = target/pg$(major)/$(built)/libpgcascade.so
consumer = target/$(built)/consumer
extension = $(DESTDIR)$(sharedir)/extension
for_server = PGRX_PG_CONFIG_PATH=$(pgconfig) cargo
server_flags = -p pgcascade --features pg$(major) --target-dir target/pg$(major)

.DEFAULT_GOAL := build
.PHONY: help build build-extension build-consumer install install-extension install-consumer installcheck \
	test demo bench check fmt clippy clippy-extension clippy-consumer unit dependencies clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 20
	@echo "Variables: PG_CONFIG=path of pg_config, DESTDIR=, prefix=/usr/local, PROFILE=release or dev, KEEP=1 (demo)"

build: build-extension build-consumer ## the extension for PG_CONFIG's server, and the consumer

build-extension: need-server
	$(for_server) build --locked --profile $(PROFILE) $(server_flags)

build-consumer:
	cargo build --locked --profile $(PROFILE) -p pgcascade-consumer

install: install-extension install-consumer ## install what `make build` built (under DESTDIR)

# `install` replaces a file instead of writing into it: a server that has the old library open goes on with the old one.
install-extension: need-server
	@test -f $(library) || { echo "make install: $(library) is not built; run: make build PG_CONFIG=$(PG_CONFIG)" >&2; exit 1; }
	$(INSTALL) -d "$(DESTDIR)$(pkglibdir)" "$(extension)"
	$(INSTALL) -m 755 $(library) "$(DESTDIR)$(pkglibdir)/pgcascade.so"
	sed 's/@VERSION@/$(version)/' pgext/pgcascade.control > target/pg$(major)/pgcascade.control
	cd sql && cat $$(grep -v '^#' ORDER) > ../target/pg$(major)/pgcascade--$(version).sql
	$(INSTALL) -m 644 target/pg$(major)/pgcascade.control target/pg$(major)/pgcascade--$(version).sql \
		$(wildcard sql/upgrade/*.sql) "$(extension)/"
	cd sql && sh native $$(grep -v '^#' ORDER) > ../target/pg$(major)/pgcascade.native.sql
	$(INSTALL) -m 644 target/pg$(major)/pgcascade.native.sql "$(extension)/"
	$(INSTALL) -m 644 sql/plain.sql "$(extension)/pgcascade.plain.sql"

install-consumer:
	@test -f $(consumer) || { echo "make install: $(consumer) is not built; run: make build" >&2; exit 1; }
	$(INSTALL) -d "$(DESTDIR)$(prefix)/bin"
	$(INSTALL) -m 755 $(consumer) "$(DESTDIR)$(prefix)/bin/consumer"

installcheck: need-server ## cases and specs against the running server of PGHOST and PGPORT, with pgcascade installed in it
	regress/golden regress $(pgconfig) $(CURDIR)/target/test/installcheck
	regress/golden isolation $(pgconfig) $(CURDIR)/target/test/installcheck-isolation
	regress/golden regress $(pgconfig) $(CURDIR)/target/test/installcheck-plain plain
	regress/golden isolation $(pgconfig) $(CURDIR)/target/test/installcheck-isolation-plain plain

test: ## everything that must pass; ends with `N passed, N failed`
	@regress/all

check: fmt clippy unit ## formatting, lints and unit tests: what needs no server running

fmt:
	cargo fmt --all --check -- --color $(if $(CI),never,auto)

clippy: clippy-consumer clippy-extension

clippy-consumer:
	cargo clippy --locked --all-targets -- -D warnings

# In the release profile, because the server's bindings are then generated once for this and for the build.
clippy-extension: need-server
	$(for_server) clippy --locked --release --all-targets $(server_flags) -- -D warnings

unit:
	cargo test --locked -p pgcascade-wire
	cargo test --locked -p pgcascade-consumer --bins

demo: ## pgbench's tables from one throw-away PostgreSQL into another, live (KEEP=1: leave it running)
	@KEEP=$(KEEP) docs/demo

bench: ## measure beside PgQ and native replication, write bench/results/
	@bench/capture
	@bench/queue
	@bench/replay
	@bench/copy
	@bench/takeover

dependencies: ## install the Debian packages that are missing, or print the command
	.ci/dependencies

clean: ## remove target/, with all clusters in it stopped
	@for pid in $$(find target -name postmaster.pid 2>/dev/null); do \
		regress/cluster stop "$$(dirname "$$(dirname "$$pid")")" immediate || true; done
	rm -rf target

.PHONY: need-server
need-server:
	@test -n "$(major)" || { echo "make: no pg_config at '$(PG_CONFIG)'; set PG_CONFIG, or run: make dependencies" >&2; exit 1; }
