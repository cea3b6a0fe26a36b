# The gate, the same as in CI; never writes.
verify:
    .ci/run

# Rewrites what can be rewritten.
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --fix --allow-dirty
