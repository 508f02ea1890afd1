# kubewasi: `make help` says what there is. Everything that is built is kept below ~/.cache/kubewasi (KUBEWASI_CACHE).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo fresh test lint unit api node test-cgroup2 test-docker test-pulls critest e2e e2e-full bench soak release \
	images tools rust

export CARGO_TARGET_DIR := $(shell hack/target-dir)

# What Debian 12 has of what is needed: to build, to run a node, to test one, here and elsewhere, to build the examples.
BUILD := gcc libc6-dev musl-tools protobuf-compiler
CROSS := gcc-aarch64-linux-gnu libc6-dev-arm64-cross
NODE := containerd runc buildah jq
TEST := busybox-static curl dbus docker-registry iproute2 openssl procps skopeo shellcheck systemd
LANGUAGES := clang g++ libc++-dev-wasm32 libc++abi-14-dev-wasm32 libclang-rt-14-dev-wasm32 lld python3-venv wabt wasi-libc
CRI := containernetworking-plugins iptables libseccomp-dev pkg-config
KIND := $(CRI) busybox-static debootstrap docker.io docker-registry jq skopeo
VM := binutils debootstrap e2fsprogs qemu-system-x86

help: ## Say what the targets do
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

demo: rust ## Run a Rust guest under a private containerd, and measure it beside runc
	@hack/packages $(BUILD) $(NODE)
	@hack/demo

fresh: ## Demo and test in a bare Debian 12 root with rustup, Go and empty caches, as root; it takes most of an hour
	@hack/fresh

test: lint unit api node ## Lint, unit tests, API server tests and node tests: all that CI asks
	@echo "test: ok, lint, unit, API server and node tests"

lint: rust ## Formatting, clippy, the rules between rooms, dependencies, spelling, scripts
	@hack/packages $(BUILD) shellcheck
	@hack/lint
	@echo "lint: ok"

unit: ## Unit tests, which need no root
	@hack/packages $(BUILD)
	@hack/rust x86_64-unknown-linux-musl
	@cargo test --quiet --locked --workspace --bins --lib --examples
	@echo "unit: ok"

api: rust ## The controller against a real API server and etcd, which are built when they are first needed
	@hack/packages $(BUILD) $(NODE) $(TEST)
	@hack/kubernetes etcd kube-apiserver >/dev/null
	@cargo build --quiet --locked --workspace --bin containerd-shim-wasi-v1
	@cargo test --quiet --locked --workspace --test api-server -- --test-threads=2
	@echo "api: ok"

node: rust ## Tests under private containerds 1.6, 1.7 and 2.4, as root; NODE_TESTS=filter picks some
	@hack/packages $(BUILD) $(NODE) $(TEST) $(LANGUAGES)
	@hack/tools-for-node
	@cargo test --quiet --locked --workspace --test node $(NODE_TESTS) -- --test-threads=3
	@echo "node: ok"

test-pulls: rust ## Every example from a registry on stock nodes of containerd 2.3 and 2.4, which takes minutes; as root
	@hack/packages $(BUILD) $(NODE) $(TEST) $(LANGUAGES)
	@hack/tools-for-node
	@cargo test --quiet --locked --workspace --test node pulls:: -- --ignored
	@echo "test-pulls: ok"

critest: rust ## CRI's conformance tests by runc and by us, on containerd 1.7 and 2.4, native images and wasm; as root
	@hack/packages $(BUILD) $(NODE) $(TEST) $(CRI)
	@hack/run-critest

test-cgroup2: rust ## Node tests under cgroup v2, systemd and AppArmor, in a virtual machine; NODE_TESTS=filters picks some
	@hack/packages $(BUILD) $(VM) jq
	@hack/test-cgroup2 $(NODE_TESTS)

test-docker: rust ## Services behind dockerd 20.10, 27, 28 and moby 2, which are built from source; as root
	@hack/packages $(BUILD) $(NODE) docker.io iproute2
	@hack/test-docker

e2e: rust ## Scenarios on a Kubernetes cluster by kind, as root; E2E=filters picks some, KUBECONFIG= takes another cluster
	@hack/packages $(BUILD) $(KIND)
	@hack/e2e $(E2E)

e2e-full: override E2E += --include-ignored
e2e-full: e2e ## As e2e, with faults, density and scale

bench: rust ## Languages, services, containers (BENCH=http,... picks); writes bench/*.md; BASELINE=COMMIT compares builds
	@hack/packages $(BUILD) $(NODE) $(LANGUAGES) linux-perf
	@hack/bench

soak: rust ## Clients and faults for SOAK_MINUTES=10 (SOAK_SEED); SOAK=lifecycles: 10,000 in one server
	@hack/packages $(BUILD) $(NODE)
	@hack/soak

release: ## Static binaries, chart, manifests, bills of materials and checksums for x86_64 and aarch64, in target/release
	@hack/packages $(BUILD) $(CROSS) jq qemu-user-static
	@hack/rust x86_64-unknown-linux-musl aarch64-unknown-linux-musl
	@hack/release target/release

images: ## Images of controller, node agent and shim for x86_64 and aarch64, as OCI archives in target/images
	@hack/packages $(BUILD) $(CROSS) jq
	@hack/rust x86_64-unknown-linux-musl aarch64-unknown-linux-musl
	@hack/images target/images

tools: ## Build the containerd versions, crictl and the linters now, not when they are first needed
	@hack/tools-for-node
	@hack/tool cargo-deny typos-cli cargo-machete >/dev/null
	@echo "tools: ok"

rust: ; @hack/rust x86_64-unknown-linux-musl wasm32-wasip1 wasm32-wasip2
