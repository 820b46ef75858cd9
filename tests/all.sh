#!/usr/bin/env bash
# Everything that must hold: format, lints, documentation, every test, the demo, the real MiniLM, the price on record. Installs what a new
# machine lacks (Debian packages); ends with a non-zero status at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."

need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 && return
    echo "installing $2"
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq && $sudo apt-get install -y -qq "$2"
}
say() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

need cc gcc
need g++ g++
need python3 python3
python3 -m pip --version >/dev/null 2>&1 || need pip3 python3-pip

say "format"
cargo fmt --all --check

say "lints"
cargo clippy --release --workspace --all-targets --locked -- -D warnings

say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --locked

say "build"
cargo build --release --workspace --locked --bins --tests

say "the real MiniLM"
cargo run --release --locked --quiet -- fetch minilm

say "tests"
cargo test --release --workspace --locked

say "demo: handwritten digits between three nodes"
cargo run --release --locked --quiet -- demo

say "demo: a text goes on between three nodes"
cargo run --release --locked --quiet -- demo --generate "Elizabeth was"

say "demo: sentences, the real MiniLM between three nodes"
cargo run --release --locked --quiet -- demo --model minilm

say "rounds, frames and bytes held to their record"
cargo run --release --locked --quiet -- bench compare benches/record/2026-12-01-bert-tiny.json

say "all passed"
