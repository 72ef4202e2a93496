# Vacate: what people type. `make` alone lists the targets.

GO       ?= go
FUZZTIME ?= 10s
DEV      ?= vacate-dev
CUTS     ?= 5

# Has Go clear what cryptography leaves of keys on stack and heap (internal/secret). A
# build without it works, and refuses tenants' shares of keys.
export GOEXPERIMENT ?= runtimesecret

# make build VERSION=v1.2.3 makes a release; without it, version says devel.
LDFLAGS := -s -w $(VERSION:%=-X vacate/internal/version.release=%)

TOOL := $(GO) tool -modfile=tools/go.mod

# Packages in which the tag purego, or the lack of assembly, changes what runs.
PUREGO := $(wildcard internal/xts internal/crypt internal/volume internal/engine)

# What an emulator of arm64 programs can run. It has no io_uring, no mlock2, not all
# signals, and starts no program of its own kind: the other packages need these. As
# the tests of crypt that search memory can not start themselves anew, all run with
# the setting that these want. It tells nobody where a fault was, nor blocks where a
# descriptor was made to; descriptors that come without room stay open in it; and what is
# limited takes longer than the limit says.
ARM64 := $(wildcard internal/xts internal/crypt internal/blk internal/blockmap internal/extent \
         internal/volume internal/lease internal/limit internal/ipc internal/poll internal/virtq internal/virtioblk internal/keyshare internal/cipheraudit)
EMULATED := GOARCH=arm64 CGO_ENABLED=0 GODEBUG=asyncpreemptoff=1 $(GO) test -exec qemu-aarch64 -timeout 3m \
         -skip 'Foreign|TestFaults|StackFaults|Broken|ChangingMemory|FullCall|LimitsHold|TooManyFiles|/Foreign|//Foreign'

.DEFAULT_GOAL := help
.PHONY: help build run demo test test-packages test-plain test-race test-purego \
        test-arm64 test-planted test-vm hunts hunts-full fmt lint vuln cross wasm helm generate generate-check bench bench-log bench-peers cover fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
	$(MAKE) --no-print-directory wasm

test-packages: ## install the Debian packages that the tests use, where missing
	@tools/test-packages.sh

# Tests that start the program as it is released, so the race detector would see nothing of it.
# A neighbour on the same cores is not what they are about.
ALONE = vacate/test/e2e vacate/test/script
OTHERS = $(filter-out $(ALONE),$(shell $(GO) list ./...))

test-race: ## the packages' tests under the race detector, with the costly checks on
	CGO_ENABLED=1 $(GO) test -race -tags invariants -timeout 8m $(OTHERS)

test-purego: ## the tests of what has assembly, without it
	$(GO) test -tags purego -timeout 5m $(PUREGO:%=./%/...)

test-arm64: test-packages ## the cipher and the data plane on arm64, under emulation
	$(EMULATED) $(ARM64:%=./%)
	$(EMULATED) -tags purego ./internal/xts

test-planted: ## plant each bug in turn: the test of its law must find it
	@GO='$(GO)' tools/planted.sh

test-plain: ## all tests as the product is built
	$(GO) test -timeout 5m $(OTHERS)
	$(GO) test -timeout 5m -p 1 $(ALONE)

test-vm: test-packages ## real kernels in virtual machines, as host and as guest, and CUTS (default 5) losses of power
	@tools/test-kernel.sh
	$(GO) test -tags vm -count=1 -timeout 30m ./test/vm
	$(GO) run ./test/hunt power -n $(CUTS)
	$(GO) run ./test/hunt power -n 8 -plant cipher-null
	$(GO) run ./test/hunt power -n 8 -plant key-on-disk
	$(GO) run ./test/hunt power -n 25 -plant lying-disk

HUNT = $(GO) run ./test/hunt

hunts: test-packages ## the hunts in short form, and that they find what is planted (root)
	$(HUNT) kill -n 80
	$(HUNT) kill -n 80 -export vhost-user
	$(HUNT) keeper -n 28
	$(HUNT) upgrade -n 6
	$(HUNT) upgrade -n 6 -export vhost-user
	$(HUNT) late-write -n 50 -daemon 10
	$(HUNT) spool -n 40
	$(HUNT) leak -n 5000 -every 2500
	$(HUNT) leak -n 2000 -every 1000 -fallback
	$(HUNT) late-write -n 50 -daemon 0 -planted fence-off
	$(HUNT) kill -n 200 -export vhost-user -planted resubmit-left-out
	$(HUNT) kill -n 200 -export vhost-user -planted inflight-unwritten
	$(HUNT) kill -n 200 -export vhost-user -point vhost.consumed -planted answer-early
	$(HUNT) spool -n 20 -planted sent-early
	$(HUNT) leak -n 3000 -every 300 -chaos 300ms -planted gate-skipped,late-decrypt
	$(HUNT) leak -n 20000 -every 20000 -chaos 100ms -planted bit-early
	$(HUNT) leak -n 3000 -every 100 -chaos 300ms -planted buffer-not-cleared
	$(HUNT) leak -n 3000 -every 100 -planted schedule-left
	$(HUNT) leak -n 200 -every 4 -workers 2 -chaos 0 -planted key-not-wiped

hunts-full: test-packages ## the hunts at the counts that a release needs (long; root)
	$(HUNT) kill -n 1000
	$(HUNT) kill -n 1000 -export vhost-user
	$(HUNT) keeper -n 200
	$(HUNT) upgrade -n 20
	$(HUNT) upgrade -n 20 -export vhost-user
	$(HUNT) spool -n 1000
	$(HUNT) late-write -n 800 -daemon 120
	$(HUNT) leak -n 100000 -every 10000
	$(HUNT) leak -n 100000 -every 10000 -fallback
	$(HUNT) power -n 50

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

wasm: test-packages ## build and vet package proof for web pages, and verify certificates there (node)
	GOOS=js GOARCH=wasm GOEXPERIMENT= $(GO) vet ./proof
	GOOS=js GOARCH=wasm GOEXPERIMENT= $(GO) test -timeout 5m -exec "$$($(GO) env GOROOT)/lib/wasm/go_js_wasm_exec" -run 'TestVerify|TestSpec|TestKinds' ./proof

helm: ## render the chart of deploy/helm with all its values, and hold it against the Kubernetes API
	cd tools/helmcheck && $(GO) test -count=1 ./...

generate: ## regenerate the API's code from its protobuf, and the ciphers' assembly
	$(TOOL) buf generate
	@GO='$(GO)' tools/generate-asm.sh

generate-check: ## fail when the generated code is not what generate makes
	@GO='$(GO)' tools/generate-check.sh

bench-peers: test-packages ## every row of the table beside peers, into docs/performance.md (15 minutes; PEERS="-only 4k-reads")
	$(GO) run ./test/peers -write docs $(PEERS)

bench: build ## measure: time to erasure, to open, memory, to restart
	$(GO) run ./test/bench

bench-log: ## records a second that a log takes, on the disk of VACATE_BENCH_DIR (default: the temporary folder's)
	$(GO) test -timeout 10m -run '^$$' -bench Add -benchtime 60000x ./internal/translog

cover: ## coverage of all packages by all tests, in coverage.out
	$(GO) test -timeout 8m -coverpkg=./... -coverprofile=coverage.out ./...
	@$(GO) tool cover -func=coverage.out | tail -1

fuzz: ## run every fuzz target for FUZZTIME (default 10s) each
	@GO='$(GO)' tools/fuzz.sh $(FUZZTIME)

clean: ## remove what was built (never ./vacate-dev: it may hold open leases)
	rm -rf bin coverage.out
