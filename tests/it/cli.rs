use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::Mutex;

use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use sluice::config::RawConfig;
use tempfile::TempDir;

use crate::support::{Api, NARRATIVES, bundle_path, event, event_with, raw_config};

/// A directory with a configuration of its own, and the binary that uses it.
struct Desk {
    directory: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// With a configuration that `adjust` has changed; it is told the directory.
    fn with(adjust: impl FnOnce(&mut RawConfig, &Path)) -> Self {
        let directory = TempDir::new().unwrap();
        let mut config = raw_config();
        config.store.path = directory.path().join("sluice.db");
        config.log.level = "warn".to_owned();
        adjust(&mut config, directory.path());
        std::fs::write(directory.path().join("sluice.toml"), config.to_toml()).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.arg("--config").arg(self.path("sluice.toml")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end; the exit status must be `expected`.
    #[track_caller]
    fn run(&self, arguments: &[&str], expected: i32) -> String {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert_eq!(status.code(), Some(expected), "{arguments:?}\n{stdout}\n{stderr}");
        assert_eq!(stderr.is_empty(), expected != 2, "{stderr}");
        if expected == 2 { stderr } else { stdout }
    }

    fn serve(&self) -> Service {
        let mut child = self.command(&["serve"]).stderr(Stdio::inherit()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let address = line.strip_prefix("listening on http://").unwrap().split(' ').next().unwrap().parse().unwrap();
        // Standard output stays open to the end, or the service's own writes would fail.
        std::thread::spawn(move || lines.for_each(drop));
        Service { child, address }
    }
}

/// The running binary; killed where a test does not end it.
struct Service {
    child: Child,
    address: SocketAddr,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_configuration_is_printed_and_checked() {
    let desk = Desk::new();
    let printed = desk.run(&["config", "print"], 0);
    let printed: RawConfig = toml::from_str(&printed).unwrap();
    assert_eq!(printed.store.path, desk.path("sluice.db"));
    assert!(desk.run(&["config", "check"], 0).contains("accepted"));

    let output = desk.command(&["config", "print"]).env("SLUICE__SERVER__MAX_IN_FLIGHT", "300").output().unwrap();
    let printed: RawConfig = toml::from_str(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
    assert_eq!(printed.server.max_in_flight, 300);
}

#[test]
fn a_configuration_that_could_not_work_is_refused_by_its_key() {
    #[track_caller]
    fn check(file: &str, expected: &str) {
        let desk = Desk::new();
        desk.write("sluice.toml", file);
        for arguments in [["config", "check"].as_slice(), &["serve"], &["classify"]] {
            let message = desk.run(arguments, 2);
            assert!(message.contains(expected), "{message}");
        }
    }

    check("[server]\nlistn = \"127.0.0.1:0\"", "listn");
    check("[server]\nmax_in_flight = 1", "max_batch_items");
    check("[server", "TOML");
    let desk = Desk::new();
    std::fs::remove_file(desk.path("sluice.toml")).unwrap();
    assert!(desk.run(&["config", "check"], 2).contains("sluice.toml"));
    let output = Desk::new().command(&["config", "check"]).env("SLUICE__SERVER__LISTN", "x").output().unwrap();
    assert!(output.status.code() == Some(2) && String::from_utf8_lossy(&output.stderr).contains("listn"));
}

#[test]
fn a_configuration_with_which_the_service_would_not_start_is_refused() {
    #[track_caller]
    fn check(expected: &str, adjust: impl FnOnce(&mut RawConfig, &Path)) {
        let desk = Desk::with(adjust);
        for command in [["config", "check"].as_slice(), &["serve"]] {
            let message = desk.run(command, 2);
            assert!(message.contains(expected), "{command:?}: {message}");
        }
    }

    check("no-bundle", |config, directory| config.bundle.path = directory.join("no-bundle"));
    check("no-policy.toml", |config, directory| config.policy.path = Some(directory.join("no-policy.toml")));
    check("the policy was refused", |config, directory| {
        let path = directory.join("policy.toml");
        std::fs::write(&path, "version = \"1\"\n").unwrap();
        config.policy.path = Some(path);
    });
    check("not-a-folder", |config, directory| {
        std::fs::write(directory.join("not-a-folder"), "").unwrap();
        config.store.path = directory.join("not-a-folder/below/sluice.db");
    });
    check("cannot be opened", |config, directory| config.store.path = directory.to_owned());
    check("store.max_readers", |config, _| config.store.max_readers = 0);
    check("`max_tokens` is 0", |config, _| config.encoder.max_tokens = 0);
    check("`encoder.max_tokens` is 9999", |config, _| config.encoder.max_tokens = 9_999);
    check("batching.max_batch_tokens", |config, _| config.batching.max_batch_tokens = 0);
    check("text.workers", |config, _| config.text.workers = 0);
}

#[test]
fn checking_a_configuration_leaves_nothing_behind_and_disturbs_nobody() {
    let desk = Desk::with(|config, directory| config.store.path = directory.join("data/new/sluice.db"));
    desk.run(&["config", "check"], 0);
    let names: Vec<_> = std::fs::read_dir(desk.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["sluice.toml"]);
    let _service = desk.serve();
    desk.run(&["config", "check"], 0);
}

#[test]
fn rows_are_answered_in_order_and_a_bad_one_says_its_line() {
    let desk = Desk::new();
    let mut lines: Vec<String> = (0..40).map(|idx| event_with("/narrative", json!(NARRATIVES[idx % 10])).to_string()).collect();
    lines[5] = "not json".to_owned();
    lines[6] = json!({"narrative": "x", "colour": "red"}).to_string();
    let file = desk.write("events.ndjson", &lines.join("\n"));

    for command in ["classify", "recommend"] {
        let answers = json_lines(&desk.run(&[command, file.to_str().unwrap()], 1));
        assert_eq!(answers.len(), lines.len());
        for (idx, answer) in answers.iter().enumerate() {
            match idx {
                5 => assert_eq!((&answer["code"], &answer["line"]), (&json!("invalid_json"), &json!(6))),
                6 => assert_eq!((&answer["field"], &answer["line"]), (&json!("colour"), &json!(7))),
                _ => assert_eq!(answer["event_id"], serde_json::from_str::<Value>(&lines[idx]).unwrap()["id"], "{answer}"),
            }
        }
    }
    // Decided once, whatever the way.
    lines.drain(5..7);
    let file = desk.write("good.ndjson", &lines.join("\n"));
    let answers = json_lines(&desk.run(&["recommend", file.to_str().unwrap()], 0));
    assert!(answers.iter().all(|answer| answer["replayed"] == true));
    assert!(desk.run(&["audit", "verify"], 0).starts_with("38 records"));
}

#[test]
fn standard_input_is_read_as_ndjson() {
    let desk = Desk::new();
    for arguments in [["classify"].as_slice(), &["classify", "-"]] {
        let mut child = desk.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{}", json!({"narrative": NARRATIVES[0]})).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(json_lines(std::str::from_utf8(&output.stdout).unwrap()).len(), 1);
    }
}

#[test]
fn every_format_gives_the_same_answer() {
    let desk = Desk::new();
    let flat = json!({"id": "e-1", "source": "s", "occurred_at": "2026-05-18T14:03:22Z", "narrative": NARRATIVES[0],
        "order": {"value": 18250.5, "regulated": true, "lines": [{"line": 2, "ordered": 40.0}]}});
    let json_file = desk.write("event.json", &serde_json::to_string_pretty(&flat).unwrap());
    let csv_file = desk.write(
        "events.csv",
        &format!(
            "id,source,occurred_at,narrative,order.value,order.regulated,order.lines.0.line,order.lines.0.ordered,customer.id\n\
             e-1,s,2026-05-18T14:03:22Z,\"{}\",18250.5,true,2,40,\n",
            NARRATIVES[0]
        ),
    );
    let parquet_file = desk.path("events.parquet");
    write_parquet(&parquet_file);

    let answers = |path: &Path| json_lines(&desk.run(&["recommend", path.to_str().unwrap()], 0));
    let first = answers(&json_file);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0]["replayed"], false);
    // Equal events have one hash, so a repeat shows that nothing was lost or added on the way.
    for path in [&csv_file, &parquet_file] {
        let again = answers(path);
        assert_eq!(again.len(), 1, "{}", path.display());
        assert_eq!((&again[0]["replayed"], &again[0]["decision_id"]), (&json!(true), &first[0]["decision_id"]));
    }
}

fn write_parquet(path: &Path) {
    let schema = "message events {
        required binary id (UTF8); required binary source (UTF8); required int64 occurred_at (TIMESTAMP(MILLIS,true));
        required binary narrative (UTF8); required double order.value; required boolean order.regulated;
        required int64 order.lines.0.line; required double order.lines.0.ordered; optional binary customer.id (UTF8);
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(WriterProperties::builder().build())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let text = |text: &str| ByteArray::from(text);
    macro_rules! column {
        ($kind:ty, $values:expr, $levels:expr) => {{
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<$kind>().write_batch($values, $levels, None).unwrap();
            column.close().unwrap();
        }};
    }
    column!(ByteArrayType, &[text("e-1")], None);
    column!(ByteArrayType, &[text("s")], None);
    column!(Int64Type, &[1_779_113_002_000], None);
    column!(ByteArrayType, &[text(NARRATIVES[0])], None);
    column!(DoubleType, &[18_250.5], None);
    column!(BoolType, &[true], None);
    column!(Int64Type, &[2], None);
    column!(DoubleType, &[40.0], None);
    column!(ByteArrayType, &[], Some(&[0]));
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn a_file_that_cannot_be_read_is_not_a_result() {
    let desk = Desk::new();
    assert!(desk.run(&["classify", "nowhere.ndjson"], 2).contains("nowhere.ndjson"));
    let broken = desk.write("broken.parquet", "PAR1 and no more");
    desk.run(&["classify", broken.to_str().unwrap()], 2);
    desk.run(&["classify", "--format", "parquet"], 2);
}

#[test]
fn a_bundle_is_verified_by_its_hashes_and_golden_cases() {
    let desk = Desk::new();
    assert!(desk.run(&["bundle", "verify"], 0).contains("every hash holds"));
    assert!(desk.run(&["bundle", "show"], 0).contains("[[file]]"));
    assert!(desk.run(&["bundle", "list"], 0).contains("* default"));

    let copy = desk.path("bundles/default");
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(bundle_path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let mut model = std::fs::read(copy.join("risk_sla.onnx")).unwrap();
    let middle = model.len() / 2;
    model[middle] ^= 1;
    std::fs::write(copy.join("risk_sla.onnx"), model).unwrap();
    let verdict = desk.run(&["bundle", "verify", copy.to_str().unwrap()], 1);
    assert!(verdict.contains("risk_sla.onnx"), "{verdict}");
}

#[test]
fn an_altered_record_is_found() {
    let desk = Desk::new();
    let file = desk.write("event.json", &event().to_string());
    let decision = json_lines(&desk.run(&["recommend", file.to_str().unwrap()], 0)).remove(0);
    let head = format!("{}:{}", decision["audit"]["sequence"], decision["audit"]["hash"].as_str().unwrap());
    desk.run(&["audit", "verify", "--expect-head", &head], 0);
    let other = format!("1:{}", "0".repeat(64));
    assert!(desk.run(&["audit", "verify", "--expect-head", &other], 1).contains("broken"));
    assert!(desk.run(&["audit", "verify", "--expect-head", "1"], 2).contains("SEQ:HASH"));
    let nothing = Desk::new();
    nothing.run(&["audit", "verify"], 2);
}

#[test]
fn a_policy_is_checked_with_its_cases() {
    let desk = Desk::new();
    assert!(desk.run(&["policy", "check"], 0).contains("cases hold"));
    let policy = desk.write("policy.toml", "version = \"1\"\ncolour = \"red\"\n");
    assert!(desk.run(&["policy", "check", policy.to_str().unwrap()], 1).contains("refused"));
    assert!(desk.run(&["policy", "check", "nowhere.toml"], 2).contains("nowhere.toml"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_service_has_lost_no_acknowledged_decision() {
    let desk = Desk::new();
    let mut acknowledged: Vec<(Value, Value)> = Vec::new();
    for round in 0..3 {
        let mut service = desk.serve();
        let api = Api::new(service.address);
        for (event, decision) in &acknowledged {
            let mut again = api.post_ok("/v1/recommend", event).await;
            assert_eq!(again["replayed"], true);
            again["replayed"] = false.into();
            assert_eq!(again, *decision);
        }

        let answered = Arc::new(Mutex::new(Vec::new()));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let (api, answered) = (api.clone(), Arc::clone(&answered));
                tokio::spawn(async move {
                    for idx in 0.. {
                        let event = event_with("/narrative", json!(NARRATIVES[idx % 10]));
                        let Ok(response) = api.json_request("/v1/recommend", event.to_string()).send().await else { return };
                        let Ok(decision) = response.json::<Value>().await else { return };
                        answered.lock().unwrap().push((event, decision));
                    }
                })
            })
            .collect();
        while answered.lock().unwrap().len() < 20 {
            assert!(service.child.try_wait().unwrap().is_none(), "the service ended by itself");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        // SIGKILL: no handler runs, no buffer is flushed.
        service.child.kill().unwrap();
        service.child.wait().unwrap();
        for caller in callers {
            caller.await.unwrap();
        }
        let answered = std::mem::take(&mut *answered.lock().unwrap());
        assert!(answered.iter().all(|(_, decision)| decision["audit"]["hash"].is_string()), "round {round}");
        let (_, newest) = answered.iter().max_by_key(|(_, decision)| decision["audit"]["sequence"].as_u64()).unwrap();
        let head = format!("{}:{}", newest["audit"]["sequence"], newest["audit"]["hash"].as_str().unwrap());
        desk.run(&["audit", "verify", "--expect-head", &head], 0);
        acknowledged.extend(answered);
    }
}

#[cfg(unix)]
#[test]
fn sigterm_ends_the_service_in_order() {
    let desk = Desk::new();
    let mut service = desk.serve();
    let killed = Command::new("kill").arg("-TERM").arg(service.child.id().to_string()).status().unwrap();
    assert!(killed.success());
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}
