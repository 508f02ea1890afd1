# kubewasi: `make help` says what there is. Everything that is built is kept below ~/.cache/kubewasi (KUBEWASI_CACHE).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint unit node test-cgroup2 critest bench soak release tools packages

CACHE := $(shell hack/cache-dir)
export CARGO_TARGET_DIR ?= $(CACHE)/target
export PATH := $(CACHE)/bin:$(PATH)

# What Debian 12 has of what is needed: to build, to run a node, to test one, here and in a virtual machine; to build the
# examples.
BUILD := gcc libc6-dev musl-tools protobuf-compiler
CROSS := gcc-aarch64-linux-gnu libc6-dev-arm64-cross
NODE := containerd runc buildah jq
TEST := busybox-static docker-registry skopeo shellcheck
LANGUAGES := clang g++ libc++-dev-wasm32 libc++abi-14-dev-wasm32 libclang-rt-14-dev-wasm32 lld python3-venv wabt wasi-libc
CRI := containernetworking-plugins iptables libseccomp-dev pkg-config
VM := binutils debootstrap e2fsprogs qemu-system-x86

help: ## Say what the targets do
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

demo: ## Run a Rust guest under a private containerd, and measure it beside runc
	@hack/packages $(BUILD) $(NODE)
	@hack/rust x86_64-unknown-linux-musl wasm32-wasip1 wasm32-wasip2
	@hack/demo

test: lint unit node ## Lint, unit tests and node tests: all that CI asks
	@echo "test: ok, lint, unit and node tests"

lint: ## Formatting, clippy, the rules between rooms, dependencies, spelling, scripts
	@hack/packages $(BUILD) shellcheck
	@hack/rust x86_64-unknown-linux-musl wasm32-wasip1 wasm32-wasip2
	@cargo fmt --all --check
	@cd e2e/guests && cargo fmt --check
	@for crate in examples/*/Cargo.toml examples/toolchains/component/Cargo.toml; do \
		cargo fmt --check --manifest-path $$crate; done
	@gofmt -l examples | (! grep .)
	@cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	@hack/lint-rooms
	@hack/lint-docs
	@shellcheck hack/* .ci/run examples/*/build*
	@hack/tool cargo-deny && cargo-deny --log-level error check --hide-inclusion-graph bans licenses sources
	@hack/tool typos-cli && typos
	@hack/tool cargo-machete && cargo-machete --skip-target-dir
	@echo "lint: ok"

unit: ## Unit tests, which need no root
	@hack/packages $(BUILD)
	@hack/rust x86_64-unknown-linux-musl
	@cargo test --quiet --locked --workspace --bins --lib --examples
	@echo "unit: ok"

node: ## Tests under private containerds 1.6, 1.7 and 2.4, as root; NODE_TESTS=filter picks some
	@hack/packages $(BUILD) $(NODE) $(TEST) $(LANGUAGES)
	@hack/rust x86_64-unknown-linux-musl wasm32-wasip1 wasm32-wasip2
	@hack/tools-for-node
	@cargo test --quiet --locked --package containerd-shim-wasi-v1 --test node $(NODE_TESTS) -- --test-threads=3
	@echo "node: ok"

critest: ## CRI's conformance tests by runc and by us, on containerd 1.7 and 2.4, native images and wasm; as root
	@hack/packages $(BUILD) $(NODE) $(TEST) $(CRI)
	@hack/rust x86_64-unknown-linux-musl wasm32-wasip1 wasm32-wasip2
	@hack/critest

test-cgroup2: ## Node tests under cgroup v2, systemd and AppArmor, in a virtual machine; NODE_TESTS=filters picks some
	@hack/packages $(BUILD) $(VM)
	@hack/rust x86_64-unknown-linux-musl wasm32-wasip1 wasm32-wasip2
	@hack/test-cgroup2 $(NODE_TESTS)

bench: ## Memory, lifecycle and languages beside runc; writes bench/report.md and the table of docs/languages.md
	@hack/packages $(BUILD) $(NODE) $(LANGUAGES)
	@hack/rust x86_64-unknown-linux-musl wasm32-wasip1 wasm32-wasip2
	@hack/bench
	@hack/bench-languages

soak: ## Clients and faults for SOAK_MINUTES=10 (SOAK_SEED); SOAK=lifecycles: 10,000 in one server
	@hack/packages $(BUILD) $(NODE)
	@hack/rust x86_64-unknown-linux-musl wasm32-wasip1 wasm32-wasip2
	@hack/soak

release: ## The static release binary, x86_64 and aarch64
	@hack/packages $(BUILD) $(CROSS)
	@hack/rust x86_64-unknown-linux-musl aarch64-unknown-linux-musl
	@CC_aarch64_unknown_linux_musl=aarch64-linux-gnu-gcc cargo build --quiet --locked --release \
		--package containerd-shim-wasi-v1 --target x86_64-unknown-linux-musl --target aarch64-unknown-linux-musl
	@ls -l $(CARGO_TARGET_DIR)/*-unknown-linux-musl/release/containerd-shim-wasi-v1
	@echo "release: ok"

tools: ## Build the containerd versions, crictl and the linters now, not when they are first needed
	@hack/tools-for-node
	@for tool in cargo-deny typos-cli cargo-machete; do hack/tool $$tool; done
	@echo "tools: ok"
