# Vacate: what people type. `make` alone lists the targets.

GO       ?= go
FUZZTIME ?= 10s
DEV      ?= vacate-dev
CUTS     ?= 5

# make build VERSION=v1.2.3 makes a release; without it, version says devel.
LDFLAGS := -s -w $(VERSION:%=-X vacate/internal/version.release=%)

TOOL := $(GO) tool -modfile=tools/go.mod

# Packages in which the tag purego, or the lack of assembly, changes what runs.
PUREGO := $(wildcard internal/xts internal/crypt internal/volume internal/engine)

.DEFAULT_GOAL := help
.PHONY: help build run demo test test-packages test-plain test-race test-purego \
        test-planted test-vm fmt lint vuln cross generate generate-check bench cover fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/vacate
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/vacate ./cmd/vacate

run: build ## build, and start a daemon under ./vacate-dev (no root, no set-up)
	@tools/try.sh $(DEV)
	@exec bin/vacate serve --dev ./$(DEV)

demo: build ## the leak on a plain volume, then the same with Vacate (20 seconds)
	bin/vacate demo

test: test-packages ## everything: vet, race + invariants, purego, planted bugs, plain
	$(GO) vet ./...
	$(MAKE) --no-print-directory test-race
	$(MAKE) --no-print-directory test-purego
	$(MAKE) --no-print-directory test-planted
	$(MAKE) --no-print-directory test-plain

test-packages: ## install the Debian packages that the tests use, where missing
	@tools/test-packages.sh

test-race: ## all tests under the race detector, with the costly checks on
	CGO_ENABLED=1 $(GO) test -race -tags invariants -timeout 8m ./...

test-purego: ## the tests of what has assembly, without it
	$(GO) test -tags purego -timeout 5m $(PUREGO:%=./%/...)

test-planted: ## plant each bug in turn: the test of its law must find it
	@GO='$(GO)' tools/planted.sh

test-plain: ## all tests as the product is built
	$(GO) test -timeout 5m ./...

test-vm: test-packages ## a real kernel in a virtual machine, and CUTS (default 5) losses of power
	@tools/test-kernel.sh
	$(GO) test -tags vm -count=1 -timeout 5m ./test/vm
	$(GO) run ./test/hunt power -n $(CUTS)
	$(GO) run ./test/hunt power -n 8 -plant cipher-null
	$(GO) run ./test/hunt power -n 8 -plant key-on-disk
	$(GO) run ./test/hunt power -n 15 -plant lying-disk

fmt: ## format the code as lint wants it
	$(TOOL) golangci-lint fmt ./...

lint: ## golangci-lint on the code, gofmt, buf lint, and govulncheck
	$(TOOL) golangci-lint run ./...
	$(TOOL) golangci-lint run --build-tags invariants,purego,planted,vm ./...
	$(TOOL) buf lint
	@$(MAKE) --no-print-directory vuln

vuln: ## known vulnerabilities in what is reachable (says so when it could not look)
	@GO='$(GO)' tools/vuln.sh

cross: ## build and vet for arm64
	GOARCH=arm64 CGO_ENABLED=0 $(GO) build ./...
	GOARCH=arm64 CGO_ENABLED=0 $(GO) vet ./...

generate: ## regenerate the API's code from its protobuf
	$(TOOL) buf generate

generate-check: ## fail when the generated code is not what generate makes
	@GO='$(GO)' tools/generate-check.sh

bench: build ## measure: time to erasure, to open, memory, reads beside peers
	$(GO) run ./test/bench

cover: ## coverage of all packages by all tests, in coverage.out
	$(GO) test -timeout 8m -coverpkg=./... -coverprofile=coverage.out ./...
	@$(GO) tool cover -func=coverage.out | tail -1

fuzz: ## run every fuzz target for FUZZTIME (default 10s) each
	@GO='$(GO)' tools/fuzz.sh $(FUZZTIME)

clean: ## remove what was built (never ./vacate-dev: it may hold open leases)
	rm -rf bin coverage.out
