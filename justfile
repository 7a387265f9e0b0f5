# What CI runs.
check:
    bash .ci/run

# Serve on port 8080.
serve:
    cargo run --release

test:
    cargo test --workspace

# Rebuild every trained artefact of models/bundles/default from training-data/, with fixed seeds.
models:
    cargo run --release -p sluice-eval -- build

# Every benchmark; BENCHMARKS.md says what each measures.
bench *ARGS:
    cargo bench -p sluice {{ARGS}}

# Licences, advisories and sources of the dependencies (needs `cargo install cargo-deny`).
deny:
    cargo deny check

# Accept a change of docs/openapi.json and docs/errors.md.
golden:
    UPDATE_GOLDEN=1 cargo test --test it http::
