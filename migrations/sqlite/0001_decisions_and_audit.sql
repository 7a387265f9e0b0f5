-- Decisions and their audit chain. Both tables are append-only: what was decided is never edited, and what follows it (a review,
-- an outcome, a rollback) is a further record.

CREATE TABLE decisions (
    decision_id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    source TEXT NOT NULL,
    event_id TEXT NOT NULL,
    -- SHA-256 of the canonical event, lower-case hex: tells a repeat from another body under the same key.
    input_hash TEXT NOT NULL,
    -- Canonical JSON of the validated event.
    event TEXT NOT NULL,
    -- JSON of the decision without its `audit` block; answers are read from these very bytes.
    decision TEXT NOT NULL,
    -- Microseconds since 1970-01-01 UTC.
    decided_at_us INTEGER NOT NULL,
    -- What people filter by. Derived from the bytes above, so that they cannot disagree with them.
    type TEXT GENERATED ALWAYS AS (decision ->> '$.classification.type') VIRTUAL,
    action TEXT GENERATED ALWAYS AS (decision ->> '$.action') VIRTUAL,
    disposition TEXT GENERATED ALWAYS AS (decision ->> '$.disposition') VIRTUAL,
    bundle_hash TEXT GENERATED ALWAYS AS (decision ->> '$.bundle.hash') VIRTUAL,
    policy_version TEXT GENERATED ALWAYS AS (decision ->> '$.policy.version') VIRTUAL,
    UNIQUE (tenant, source, event_id)
) STRICT;

CREATE TABLE audit (
    -- From 1, without gaps.
    sequence INTEGER NOT NULL PRIMARY KEY,
    decision_id TEXT NOT NULL REFERENCES decisions (decision_id),
    kind TEXT NOT NULL,
    -- SHA-256 over what the record is about.
    payload_hash BLOB NOT NULL CHECK (length(payload_hash) = 32),
    -- `hash` of the record before; 32 zero bytes in the first.
    previous_hash BLOB NOT NULL CHECK (length(previous_hash) = 32),
    -- SHA-256 over this record and, through `previous_hash`, everything before it.
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    recorded_at_us INTEGER NOT NULL
) STRICT;

CREATE INDEX audit_by_decision ON audit (decision_id);
-- A decision is recorded once.
CREATE UNIQUE INDEX audit_one_decision_record ON audit (decision_id) WHERE kind = 'decision';

CREATE TRIGGER decisions_refuse_update BEFORE UPDATE ON decisions
BEGIN
    SELECT RAISE(ABORT, 'decisions are append-only');
END;

CREATE TRIGGER decisions_refuse_delete BEFORE DELETE ON decisions
BEGIN
    SELECT RAISE(ABORT, 'decisions are append-only');
END;

CREATE TRIGGER audit_refuses_update BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit chain is append-only');
END;

CREATE TRIGGER audit_refuses_delete BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit chain is append-only');
END;
