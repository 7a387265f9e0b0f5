//! The store: one conformance suite for every backend, tampering with the file, and a process that is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use sluice::decision::{AuditReference, Decision};
use sluice::store::audit::{AuditFault, AuditFaultKind};
use sluice::store::{IN_MEMORY, Store, StoreConfig, StoreError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;
use tokio::task::JoinSet;

#[path = "../fixtures/decision.rs"]
#[allow(dead_code, reason = "shared with the benches")]
pub(crate) mod fixture;

use fixture::{new_decision, new_decision_on};

// ---------------------------------------------------------------- conformance

/// What every backend must do, on an empty store.
async fn conforms(store: Store) {
    a_recorded_decision_is_found_and_replayed(&store).await;
    concurrent_repeats_give_one_decision(&store).await;
    concurrent_bodies_under_one_key_give_one_decision_and_conflicts(&store).await;
    a_refused_row_does_not_fail_its_neighbours(&store).await;
    a_number_that_json_cannot_hold_is_refused(&store).await;
    numbers_come_back_exactly(&store).await;
    the_chain_verifies_against_every_answer(&store).await;
    a_closed_store_says_so(&store).await;
}

async fn a_recorded_decision_is_found_and_replayed(store: &Store) {
    let new = new_decision("found");
    assert!(store.find(&new.key, &new.input_hash).await.unwrap().is_none());
    assert!(matches!(store.decision(&new.decision.decision_id).await, Err(StoreError::NotFound)));

    let first = store.record(new.clone()).await.unwrap();
    assert!(first.audit.is_some() && !first.replayed);
    assert_eq!(without_audit(&first), without_audit(&new.decision));

    let replayed = Decision { replayed: true, ..first.clone() };
    assert_same_bytes(&store.find(&new.key, &new.input_hash).await.unwrap().unwrap(), &replayed);
    assert_same_bytes(&store.record(new_decision("found")).await.unwrap(), &replayed);
    assert_same_bytes(&store.decision(&first.decision_id).await.unwrap(), &first);

    let other = new_decision_on("found", "another text");
    assert!(matches!(store.find(&other.key, &other.input_hash).await, Err(StoreError::Conflict)));
    assert!(matches!(store.record(other).await, Err(StoreError::Conflict)));

    let mut elsewhere = new_decision("found");
    elsewhere.key.tenant = "another".to_owned();
    assert!(!store.record(elsewhere).await.unwrap().replayed, "the key has three parts");
}

async fn concurrent_repeats_give_one_decision(store: &Store) {
    let before = store.verify_audit(None).await.unwrap().records;
    let answers = record_all(store, (0..64).map(|_| new_decision("repeated"))).await;
    let answers: Vec<Decision> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
    for answer in &answers {
        assert_same_bytes(&Decision { replayed: false, ..answer.clone() }, &Decision { replayed: false, ..answers[0].clone() });
    }
    assert_eq!(store.verify_audit(None).await.unwrap().records, before + 1);
}

async fn concurrent_bodies_under_one_key_give_one_decision_and_conflicts(store: &Store) {
    let bodies = (0..64).map(|body_idx| new_decision_on("contested", if body_idx % 2 == 0 { "one text" } else { "another text" }));
    let answers = record_all(store, bodies).await;
    let decided: Vec<&Decision> = answers.iter().flatten().collect();
    assert_eq!(decided.len(), 32, "the body that came first, and its repeats");
    assert!(decided.iter().all(|answer| answer.decision_id == decided[0].decision_id));
    assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(StoreError::Conflict))));
}

async fn a_refused_row_does_not_fail_its_neighbours(store: &Store) {
    let taken = store.record(new_decision("taken")).await.unwrap().decision_id;
    let rows = (0..48).map(|row_idx| {
        let mut new = new_decision(&format!("neighbour-{row_idx}"));
        if row_idx % 3 == 0 {
            new.decision.decision_id.clone_from(&taken);
        }
        new
    });
    let answers = record_all(store, rows).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 32);
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Err(StoreError::DuplicateId))).count(), 16);
    assert!(store.health().await.is_ok(), "a refused row is not a failed commit");

    let twins = record_all(
        store,
        (0..8).map(|row_idx| {
            let mut new = new_decision(&format!("twin-{row_idx}"));
            new.decision.decision_id = "twin".to_owned();
            new
        }),
    );
    assert_eq!(twins.await.iter().filter(|answer| answer.is_ok()).count(), 1, "nor may two new rows share an id");
}

async fn a_number_that_json_cannot_hold_is_refused(store: &Store) {
    let mut new = new_decision("not-finite");
    new.decision.classification.as_mut().unwrap().score = f64::NAN;
    assert!(matches!(store.record(new.clone()).await, Err(StoreError::Corrupt(_))));
    assert!(store.find(&new.key, &new.input_hash).await.unwrap().is_none());
}

async fn numbers_come_back_exactly(store: &Store) {
    let numbers = (1..400_u32).map(|n| f64::from(n) / 7.0 * 1e-3).chain([f64::MIN_POSITIVE, 5e-324, f64::MAX, 0.1 + 0.2, 1e-7]);
    let mut new = new_decision("numbers");
    let candidates = &mut new.decision.classification.as_mut().unwrap().candidates;
    *candidates = numbers.map(|score| sluice::classifier::Candidate { r#type: "x".to_owned(), score }).collect();
    let answer = store.record(new.clone()).await.unwrap();
    assert_eq!(without_audit(&answer), without_audit(&new.decision));
}

async fn the_chain_verifies_against_every_answer(store: &Store) {
    let answer = store.record(new_decision("anchor")).await.unwrap();
    for id in 0..5 {
        store.record(new_decision(&format!("after-the-anchor-{id}"))).await.unwrap();
    }
    let report = store.verify_audit(answer.audit.as_ref()).await.unwrap();
    assert_eq!(report.records, report.head_sequence);
    assert_eq!(report.head_sequence, answer.audit.unwrap().sequence + 5);
    let head = AuditReference { sequence: report.head_sequence, hash: report.head_hash.clone() };
    assert_eq!(store.verify_audit(Some(&head)).await.unwrap(), report);
}

async fn a_closed_store_says_so(store: &Store) {
    assert!(store.health().await.is_ok());
    store.close().await;
    store.close().await;
    let new = new_decision("late");
    assert!(matches!(store.health().await, Err(StoreError::Closed)));
    assert!(matches!(store.find(&new.key, &new.input_hash).await, Err(StoreError::Closed)));
    assert!(matches!(store.verify_audit(None).await, Err(StoreError::Closed)));
    assert!(matches!(store.record(new).await, Err(StoreError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_in_a_file_conforms() {
    let (_directory, config) = fresh();
    conforms(Store::open(&config).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_in_memory_conforms() {
    conforms(Store::open(&patient(IN_MEMORY)).await.unwrap()).await;
}

#[tokio::test]
async fn sqlite_conforms_on_one_thread_with_a_queue_of_one() {
    let (_directory, config) = fresh();
    conforms(Store::open(&StoreConfig { queue_capacity: 1, max_commit_rows: 1, max_readers: 1, ..config }).await.unwrap()).await;
}

// ---------------------------------------------------------------- opening and closing

#[tokio::test]
async fn decisions_survive_a_restart() {
    let (_directory, config) = fresh();
    let store = Store::open(&config).await.unwrap();
    let first = store.record(new_decision("kept")).await.unwrap();
    store.close().await;
    let wal = PathBuf::from(format!("{}-wal", config.path.display()));
    assert!(!wal.exists(), "closing folds the log into the file");

    let store = Store::open(&config).await.unwrap();
    let again = store.record(new_decision("kept")).await.unwrap();
    assert_same_bytes(&again, &Decision { replayed: true, ..first });
    assert_eq!(store.record(new_decision("next")).await.unwrap().audit.unwrap().sequence, 2, "the chain goes on");
    store.verify_audit(None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_lets_the_decisions_that_wait_reach_the_disk() {
    let (_directory, config) = fresh();
    let store = Store::open(&config).await.unwrap();
    let mut recording = JoinSet::new();
    for id in 0..300 {
        let store = store.clone();
        recording.spawn(async move { store.record(new_decision(&id.to_string())).await });
    }
    tokio::task::yield_now().await;
    store.close().await;
    let answers = recording.join_all().await;

    let store = Store::open(&config).await.unwrap();
    let mut acknowledged = 0;
    for answer in answers {
        match answer {
            Ok(decision) => assert_same_bytes(&store.decision(&decision.decision_id).await.unwrap(), &decision),
            Err(error) => {
                assert!(matches!(error, StoreError::Closed));
                continue;
            }
        }
        acknowledged += 1;
    }
    assert_eq!(store.verify_audit(None).await.unwrap().records, acknowledged);
}

#[tokio::test]
async fn a_second_writer_is_refused_under_any_spelling_of_the_path() {
    let (directory, config) = fresh();
    let store = Store::open(&config).await.unwrap();
    assert!(matches!(Store::open(&config).await, Err(StoreError::InUse { .. })));
    let link = directory.path().join("link.db");
    std::os::unix::fs::symlink(&config.path, &link).unwrap();
    assert!(matches!(Store::open(&StoreConfig::at(link)).await, Err(StoreError::InUse { .. })));
    store.close().await;
    Store::open(&config).await.unwrap().close().await;
}

#[tokio::test]
async fn a_reader_verifies_beside_the_writer_and_cannot_write() {
    let (_directory, config) = fresh();
    assert!(Store::open_reader(&config).await.is_err(), "a reader creates nothing");
    assert!(!config.path.exists());
    let store = Store::open(&config).await.unwrap();
    let first = store.record(new_decision("one")).await.unwrap();
    let reader = Store::open_reader(&config).await.unwrap();
    assert_eq!(reader.verify_audit(None).await.unwrap().records, 1);
    assert_same_bytes(&reader.decision(&first.decision_id).await.unwrap(), &first);
    assert!(matches!(reader.record(new_decision("two")).await, Err(StoreError::ReadOnly)));
    store.record(new_decision("two")).await.unwrap();
    assert_eq!(reader.verify_audit(None).await.unwrap().records, 2);
    assert!(reader.health().await.is_ok());
    reader.close().await;
}

#[tokio::test]
async fn a_path_that_cannot_be_created_is_named() {
    let (directory, _) = fresh();
    std::fs::write(directory.path().join("file"), "not a directory").unwrap();
    let path = directory.path().join("file/sluice.db");
    let error = Store::open(&StoreConfig::at(&path)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Open { path: at, .. } if *at == path), "{error}");
    assert!(matches!(
        Store::open(&StoreConfig { max_commit_rows: 0, ..StoreConfig::at(IN_MEMORY) }).await,
        Err(StoreError::Config { field: "max_commit_rows", .. })
    ));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let (_directory, config) = fresh();
    std::fs::create_dir_all(config.path.parent().unwrap()).unwrap();
    let text = "a text file of somebody else's ".repeat(100);
    std::fs::write(&config.path, &text).unwrap();
    assert!(Store::open(&config).await.is_err());
    assert_eq!(std::fs::read_to_string(&config.path).unwrap(), text);
}

#[tokio::test]
async fn a_failed_commit_fails_its_whole_batch_and_the_next_one_stands() {
    let (_directory, config) = fresh();
    let store = Store::open(&config).await.unwrap();
    store.record(new_decision("before")).await.unwrap();

    let mut foreign = raw(&config.path).await;
    run(&mut foreign, "ALTER TABLE audit RENAME TO hidden").await;
    let answers = record_all(&store, (0..8).map(|id| new_decision(&format!("failed-{id}")))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(StoreError::Database(_)))));
    assert!(store.health().await.is_err());

    run(&mut foreign, "ALTER TABLE hidden RENAME TO audit").await;
    assert!(store.health().await.is_ok(), "the probe finds the disk again without any traffic");
    let after = store.record(new_decision("failed-0")).await.unwrap();
    assert!(!after.replayed && after.audit.unwrap().sequence == 2, "nothing of the failed batch stayed behind");
    store.verify_audit(None).await.unwrap();
}

// ---------------------------------------------------------------- tampering

const ROWS: u64 = 6;

async fn intact(config: &StoreConfig, prefix: &str) -> AuditReference {
    let store = Store::open(config).await.unwrap();
    for id in 0..ROWS {
        store.record(new_decision(&format!("{prefix}-{id}"))).await.unwrap();
    }
    let report = store.verify_audit(None).await.unwrap();
    store.close().await;
    AuditReference { sequence: report.head_sequence, hash: report.head_hash }
}

#[tokio::test]
async fn the_tables_refuse_to_be_edited() {
    let (_directory, config) = fresh();
    intact(&config, "row").await;
    let mut connection = raw(&config.path).await;
    for statement in [
        "UPDATE decisions SET decision = '{}'",
        "DELETE FROM decisions",
        "UPDATE audit SET recorded_at_us = 0",
        "DELETE FROM audit WHERE sequence = 6",
    ] {
        let error = sqlx::raw_sql(statement).execute(&mut connection).await.unwrap_err();
        assert!(error.to_string().contains("append-only"), "{statement}: {error}");
    }
}

#[tokio::test]
async fn verification_finds_every_kind_of_tampering() {
    use AuditFaultKind as K;
    let (directory, config) = fresh();
    let head = intact(&config, "row").await;
    let check = |name: &'static str, statements: &'static str, sequence: u64, kind: AuditFaultKind| {
        let path = directory.path().join("tampered.db");
        std::fs::copy(&config.path, &path).unwrap();
        let expected = AuditFault { sequence, kind };
        async move {
            let mut connection = raw(&path).await;
            run(&mut connection, DROP_TRIGGERS).await;
            run(&mut connection, statements).await;
            connection.close().await.unwrap();
            let found = verify(&path, None).await.expect_err(name);
            assert_eq!(found, expected, "{name}");
        }
    };

    // Edits.
    check(
        "disposition",
        "UPDATE decisions SET decision = replace(decision, '\"review\"', '\"auto_resolve\"') WHERE rowid = 3",
        3,
        K::PayloadAltered,
    )
    .await;
    check("one space", "UPDATE decisions SET decision = decision || ' ' WHERE rowid = 1", 1, K::PayloadAltered).await;
    check("event", "UPDATE decisions SET event = replace(event, '28', '40') WHERE rowid = 6", 6, K::PayloadAltered).await;
    check("tenant", "UPDATE decisions SET tenant = 'other' WHERE rowid = 4", 4, K::PayloadAltered).await;
    check("key", "UPDATE decisions SET event_id = 'other' WHERE rowid = 4", 4, K::PayloadAltered).await;
    check(
        "source to event",
        "UPDATE decisions SET source = source || 'r', event_id = substr(event_id, 2) WHERE rowid = 4",
        4,
        K::PayloadAltered,
    )
    .await;
    check("input hash", "UPDATE decisions SET input_hash = 'other' WHERE rowid = 2", 2, K::PayloadAltered).await;
    check("time of the decision", "UPDATE decisions SET decided_at_us = decided_at_us + 1 WHERE rowid = 2", 2, K::PayloadAltered)
        .await;
    check("not UTF-8", "UPDATE decisions SET event = CAST(x'ff' AS TEXT) WHERE rowid = 5", 5, K::PayloadAltered).await;
    check("swapped bodies", "UPDATE decisions SET decision = (SELECT decision FROM decisions o WHERE o.rowid = 5 - decisions.rowid) WHERE rowid IN (2, 3)", 2, K::PayloadAltered).await;
    check("time of the record", "UPDATE audit SET recorded_at_us = recorded_at_us - 1 WHERE sequence = 5", 5, K::RecordAltered)
        .await;
    check("kind", "UPDATE audit SET kind = 'review' WHERE sequence = 2", 2, K::RecordAltered).await;
    check("hash", "UPDATE audit SET hash = zeroblob(32) WHERE sequence = 6", 6, K::RecordAltered).await;
    check("payload hash", "UPDATE audit SET payload_hash = zeroblob(32) WHERE sequence = 1", 1, K::RecordAltered).await;
    check("previous hash", "UPDATE audit SET previous_hash = zeroblob(32) WHERE sequence = 2", 2, K::BrokenLink).await;
    check(
        "unreadable",
        "CREATE TABLE a AS SELECT * FROM audit; DROP TABLE audit; ALTER TABLE a RENAME TO audit; \
        UPDATE audit SET recorded_at_us = 'x' WHERE sequence = 4",
        4,
        K::Unreadable,
    )
    .await;

    // Deletions.
    check("record", "DELETE FROM audit WHERE sequence = 3", 3, K::Missing).await;
    check("first record", "DELETE FROM audit WHERE sequence = 1", 1, K::Missing).await;
    check("decision", "DELETE FROM decisions WHERE rowid = 4", 4, K::DecisionMissing).await;
    check("both", "DELETE FROM audit WHERE sequence = 3; DELETE FROM decisions WHERE rowid = 3", 3, K::Missing).await;
    check(
        "both, renumbered",
        "DELETE FROM audit WHERE sequence = 3; DELETE FROM decisions WHERE rowid = 3; \
        UPDATE audit SET sequence = sequence - 1 WHERE sequence > 3",
        3,
        K::BrokenLink,
    )
    .await;
    check(
        "everything but the decisions",
        "DELETE FROM audit",
        0,
        K::DecisionUnrecorded { decision_id: id_of(&config.path, 1).await },
    )
    .await;
    check(
        "last record",
        "DELETE FROM audit WHERE sequence = 6",
        5,
        K::DecisionUnrecorded { decision_id: id_of(&config.path, 6).await },
    )
    .await;

    // Insertions.
    check(
        "decision",
        "INSERT INTO decisions (decision_id, tenant, source, event_id, input_hash, event, decision, decided_at_us) \
        SELECT 'added', tenant, source, 'added', input_hash, event, decision, decided_at_us FROM decisions WHERE rowid = 2",
        6,
        K::DecisionUnrecorded { decision_id: "added".to_owned() },
    )
    .await;
    const ADD: &str = "DROP INDEX audit_one_decision_record";
    check("record before the first", concat_sql(ADD, "INSERT INTO audit SELECT 0, decision_id, kind, payload_hash, previous_hash, hash, recorded_at_us FROM audit WHERE sequence = 1"), 0, K::OutOfPlace).await;
    check("negative", concat_sql(ADD, "INSERT INTO audit SELECT -7, decision_id, kind, payload_hash, previous_hash, hash, recorded_at_us FROM audit WHERE sequence = 1"), 0, K::OutOfPlace).await;
    check("copied to the end", concat_sql(ADD, "INSERT INTO audit SELECT 7, decision_id, kind, payload_hash, previous_hash, hash, recorded_at_us FROM audit WHERE sequence = 6"), 7, K::BrokenLink).await;
    check(
        "linked to the end",
        concat_sql(
            ADD,
            "INSERT INTO audit SELECT 7, decision_id, kind, payload_hash, hash, hash, recorded_at_us FROM audit WHERE sequence = 6",
        ),
        7,
        K::RecordAltered,
    )
    .await;
    check("in the middle", concat_sql(ADD, "UPDATE audit SET sequence = -sequence WHERE sequence > 2; UPDATE audit SET sequence = 1 - sequence WHERE sequence < 0; \
        INSERT INTO audit SELECT 3, decision_id, kind, payload_hash, hash, hash, recorded_at_us FROM audit WHERE sequence = 2"), 3, K::RecordAltered).await;

    // Moves.
    check(
        "swapped",
        "UPDATE audit SET sequence = 99 WHERE sequence = 2; UPDATE audit SET sequence = 2 WHERE sequence = 3; \
        UPDATE audit SET sequence = 3 WHERE sequence = 99",
        2,
        K::BrokenLink,
    )
    .await;
    check("renumbered", "UPDATE audit SET sequence = sequence + 10", 1, K::Missing).await;
    check(
        "about another decision",
        concat_sql(ADD, "UPDATE audit SET decision_id = (SELECT decision_id FROM audit WHERE sequence = 1) WHERE sequence = 2"),
        2,
        K::RecordAltered,
    )
    .await;

    verify(&config.path, Some(&head)).await.expect("the original stayed intact");
}

#[tokio::test]
async fn a_decision_without_a_record_is_no_answer() {
    let (_directory, config) = fresh();
    intact(&config, "row").await;
    let mut connection = raw(&config.path).await;
    run(&mut connection, DROP_TRIGGERS).await;
    run(&mut connection, "DELETE FROM audit WHERE sequence = 6").await;
    connection.close().await.unwrap();

    let store = Store::open(&config).await.unwrap();
    let new = new_decision("row-5");
    let unrecorded =
        |error| matches!(error, StoreError::Audit(fault) if matches!(fault.kind, AuditFaultKind::DecisionUnrecorded { .. }));
    assert!(unrecorded(store.find(&new.key, &new.input_hash).await.unwrap_err()));
    assert!(unrecorded(store.record(new).await.unwrap_err()), "and it is not decided a second time");
}

#[tokio::test]
async fn a_head_kept_elsewhere_shows_a_chain_that_was_cut_or_written_anew() {
    let (directory, config) = fresh();
    let head = intact(&config, "row").await;
    let mut connection = raw(&config.path).await;
    run(&mut connection, DROP_TRIGGERS).await;
    run(&mut connection, "DELETE FROM audit WHERE sequence > 4; DELETE FROM decisions WHERE rowid > 4").await;
    connection.close().await.unwrap();
    assert_eq!(verify(&config.path, None).await.unwrap(), 4, "from inside, the shorter chain is whole");
    let cut = AuditFault { sequence: 5, kind: AuditFaultKind::Truncated };
    assert_eq!(verify(&config.path, Some(&head)).await, Err(cut));

    let anew = patient(directory.path().join("anew.db"));
    intact(&anew, "row").await;
    assert_eq!(verify(&anew.path, None).await.unwrap(), ROWS);
    let rewritten = AuditFault { sequence: ROWS, kind: AuditFaultKind::Rewritten };
    assert_eq!(verify(&anew.path, Some(&head)).await, Err(rewritten));
}

#[tokio::test]
async fn a_chain_longer_than_a_page_is_walked_to_its_end() {
    let (_directory, config) = fresh();
    let store = Store::open(&config).await.unwrap();
    let answers = record_all(&store, (0..1100).map(|id| new_decision(&id.to_string()))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(store.verify_audit(None).await.unwrap().records, 1100);
    store.close().await;
    let mut connection = raw(&config.path).await;
    run(&mut connection, DROP_TRIGGERS).await;
    run(
        &mut connection,
        "UPDATE decisions SET event = '{}' WHERE decision_id = (SELECT decision_id FROM audit WHERE sequence = 1025)",
    )
    .await;
    connection.close().await.unwrap();
    let fault = AuditFault { sequence: 1025, kind: AuditFaultKind::PayloadAltered };
    assert_eq!(verify(&config.path, None).await, Err(fault));
}

// ---------------------------------------------------------------- durability

/// Set in the child: the file it records into.
const CHILD_PATH: &str = "SLUICE_TEST_STORE_CHILD";
/// How often the child is killed; more for a long run.
const KILLS: &str = "SLUICE_TEST_STORE_KILLS";
const ACKNOWLEDGED: &str = "acknowledged ";

#[test]
fn no_acknowledged_decision_is_lost_when_the_process_is_killed() {
    if let Some(path) = std::env::var_os(CHILD_PATH) {
        return record_until_killed(Path::new(&path));
    }
    let kills: u64 = std::env::var(KILLS).map_or(5, |kills| kills.parse().expect("a number of kills"));
    let (_directory, config) = fresh();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut acknowledged: Vec<(String, AuditReference)> = Vec::new();
    for kill in 0..kills {
        let before = acknowledged.len();
        // From the first answers after opening to well into a stream of full commits.
        let wanted = usize::try_from(1 + kill * 97 % 400).unwrap();
        acknowledged.extend(answers_until_killed(&config.path, wanted));
        assert!(acknowledged.len() >= before + wanted);
        runtime.block_on(async {
            let store = Store::open(&config).await.expect("a killed writer leaves no lock behind");
            for (decision_id, audit) in &acknowledged[before..] {
                let decision = store.decision(decision_id).await.expect("an acknowledged decision is there");
                assert_eq!(decision.audit.as_ref(), Some(audit));
            }
            let last = acknowledged.iter().map(|(_, audit)| audit).max_by_key(|audit| audit.sequence);
            let report = store.verify_audit(last).await.expect("the chain holds");
            assert!(report.records >= acknowledged.len() as u64);
            store.close().await;
        });
    }
}

/// Runs this very test as another process, and kills it after `wanted` answers.
fn answers_until_killed(path: &Path, wanted: usize) -> Vec<(String, AuditReference)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::no_acknowledged_decision_is_lost_when_the_process_is_killed", "--nocapture"])
        .env(CHILD_PATH, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut answers = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    // What stood in the pipe when the child died counts too; a line cut short was never acknowledged.
    while lines.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
        if let Some((_, answer)) = line.trim_end().split_once(ACKNOWLEDGED) {
            let [decision_id, sequence, hash]: [&str; 3] = answer.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let audit = AuditReference { sequence: sequence.parse().unwrap(), hash: hash.to_owned() };
            answers.push((decision_id.to_owned(), audit));
        }
        if answers.len() == wanted {
            child.kill().unwrap();
        }
        line.clear();
    }
    assert!(!child.wait().unwrap().success(), "the child ends only by the kill");
    answers
}

fn record_until_killed(path: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::open(&patient(path)).await.unwrap();
        let mut recording = JoinSet::new();
        for _ in 0..64 {
            let store = store.clone();
            recording.spawn(async move {
                loop {
                    let decision = store.record(new_decision(&uuid::Uuid::now_v7().to_string())).await.unwrap();
                    let audit = decision.audit.unwrap();
                    let line = format!("{ACKNOWLEDGED}{} {} {}\n", decision.decision_id, audit.sequence, audit.hash);
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                }
            });
        }
        recording.join_all().await;
    });
}

// ---------------------------------------------------------------- helpers

const DROP_TRIGGERS: &str = "DROP TRIGGER decisions_refuse_update; DROP TRIGGER decisions_refuse_delete; \
    DROP TRIGGER audit_refuses_update; DROP TRIGGER audit_refuses_delete";

/// Waits so long that no test depends on how busy the machine is.
fn patient(path: impl Into<PathBuf>) -> StoreConfig {
    StoreConfig { busy_timeout_ms: 600_000, ..StoreConfig::at(path) }
}

/// A file of its own in a directory that does not exist yet.
pub(crate) fn fresh() -> (TempDir, StoreConfig) {
    let directory = tempfile::tempdir().unwrap();
    let config = patient(directory.path().join("data/sluice.db"));
    (directory, config)
}

async fn record_all(
    store: &Store,
    decisions: impl Iterator<Item = sluice::store::NewDecision>,
) -> Vec<Result<Decision, StoreError>> {
    let store = Arc::new(store.clone());
    let mut recording = JoinSet::new();
    for new in decisions {
        let store = Arc::clone(&store);
        recording.spawn(async move { store.record(new).await });
    }
    recording.join_all().await
}

fn without_audit(decision: &Decision) -> Decision {
    Decision { audit: None, replayed: false, ..decision.clone() }
}

fn assert_same_bytes(left: &Decision, right: &Decision) {
    assert_eq!(serde_json::to_string(left).unwrap(), serde_json::to_string(right).unwrap());
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).foreign_keys(false).connect().await.unwrap()
}

async fn run(connection: &mut SqliteConnection, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(connection).await.expect(statements);
}

fn concat_sql(first: &str, second: &str) -> &'static str {
    Box::leak(format!("{first}; {second}").into_boxed_str())
}

async fn id_of(path: &Path, sequence: i64) -> String {
    let mut connection = raw(path).await;
    let query = sqlx::query_scalar("SELECT decision_id FROM audit WHERE sequence = ?").bind(sequence);
    query.fetch_one(&mut connection).await.unwrap()
}

/// The number of records, or the first fault.
async fn verify(path: &Path, expected: Option<&AuditReference>) -> Result<u64, AuditFault> {
    let store = Store::open_reader(&patient(path)).await.unwrap();
    let verified = store.verify_audit(expected).await;
    store.close().await;
    match verified {
        Ok(report) => Ok(report.records),
        Err(StoreError::Audit(fault)) => Err(fault),
        Err(other) => panic!("{other:?}"),
    }
}
