#!/usr/bin/env bash
# What a release is held to beyond `tests/all.sh`: the tests whose usual size is a sample, in full.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

say "numbers of strangers: 10000 manifests and as many share files, changed"
MUTATIONS=10000 cargo test --release --locked -p tercet-testkit --test mutations -- --nocapture

say "all passed"
