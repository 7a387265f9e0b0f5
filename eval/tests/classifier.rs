//! Training and evaluating on a small set of a distributor's own codes, end to end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use sluice::encoder::CandleEncoder;
use sluice::taxonomy::UNRECOGNIZED;
use sluice_eval::assemble;
use sluice_eval::classifier::heads::Label;
use sluice_eval::classifier::train;
use sluice_eval::evaluate;
use sluice_eval::finetune::{CheckpointFile, FineTuneParams, Progress, Run, TrainingText, fine_tune};

fn encoder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/encoders/minilm-l6-v2")
}

/// Texts of two codes and of neither, from four sites, in CSV.
fn data() -> String {
    let mut csv = "remark,code,site\n".to_owned();
    for site in ["north", "south", "east", "west"] {
        for item in ["bearings", "gloves", "valves"] {
            for (code, remark) in [
                ("K01", format!("short pick of {item} at {site}, half the quantity is missing")),
                ("K01", format!("stock of {item} ran out, line cannot be filled")),
                ("K02", format!("pallet of {item} dropped, cartons crushed and wet")),
                ("K02", format!("{item} arrived broken, customer sends photos of the damage")),
                ("other", format!("canteen closed on friday, bring {item} yourself from {site}")),
            ] {
                csv.push_str(&format!("\"{remark}\",{code},{site}\n"));
            }
        }
    }
    csv
}

#[derive(Parser)]
struct Train {
    #[command(flatten)]
    args: train::Args,
}

#[derive(Parser)]
struct Assemble {
    #[command(flatten)]
    args: assemble::Args,
}

#[derive(Parser)]
struct Evaluate {
    #[command(flatten)]
    args: evaluate::Args,
}

fn columns(dir: &Path) -> Vec<String> {
    let data = dir.join("remarks.csv");
    std::fs::write(&data, self::data()).unwrap();
    ["--data", data.to_str().unwrap(), "--text", "remark", "--label", "code", "--oos-label", "other", "--group", "site"]
        .map(str::to_owned)
        .to_vec()
}

fn train(dir: &Path, out: &str, training: &[&str]) -> train::Args {
    let mut words = vec!["train".to_owned()];
    words.extend(columns(dir));
    // A folder of its own, so that a second run finds nothing of the first.
    let (encoder, work, out) = (encoder(), dir.join(format!("{out}-work")), dir.join(out));
    for (flag, path) in [("--encoder-path", &encoder), ("--work", &work), ("--out", &out)] {
        words.extend([flag.to_owned(), path.to_str().unwrap().to_owned()]);
    }
    words.extend(training.iter().map(|word| (*word).to_owned()));
    Train::parse_from(words).args
}

#[test]
fn any_codes_make_a_bundle_that_evaluates() {
    check_training(&["--encoder", "frozen"], &[]);
}

#[test]
fn an_encoder_that_learns_makes_one_too() {
    let training =
        ["--encoder", "fine-tuned", "--epochs", "6", "--rank", "4", "--trained-layers", "1", "--batch-size", "8", "--folds", "2"];
    check_training(&training, &["adapter.safetensors"]);
}

fn check_training(training: &[&str], more_files: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let report = train::train(&train(dir.path(), "bundle", training)).unwrap();
    assert_eq!(report.types, ["K01", "K02"]);
    assert!(report.held_out_by_group && report.groups.len() == 4);
    assert!(report.held_out.accuracy > 0.9, "{report}");
    assert!(report.held_out.roc_auc_novelty.unwrap() > 0.9, "{report}");
    assert!(report.thresholds.thresholds.iter().all(|row| row.insufficient_evidence && row.threshold.is_none()));
    let held_out = std::fs::read_to_string(dir.path().join("bundle-work/held_out.jsonl")).unwrap();
    assert_eq!(held_out.lines().count(), 60);

    train::train(&train(dir.path(), "again", training)).unwrap();
    let files = ["classifier.toml", "classifier.safetensors", "thresholds.toml", "taxonomy.toml"];
    for file in files.iter().chain(more_files) {
        let read = |out: &str| std::fs::read(dir.path().join(out).join(file)).unwrap();
        assert!(read("bundle") == read("again"), "`{file}` differs between two runs with one seed");
    }

    let mut words = vec!["assemble".to_owned()];
    words.extend(columns(dir.path()));
    let (encoder_path, out) = (encoder(), dir.path().join("bundle"));
    for (flag, value) in [("--encoder-path", encoder_path.as_os_str()), ("--bundle", out.as_os_str()), ("--name", "codes".as_ref())]
    {
        words.extend([flag.to_owned(), value.to_str().unwrap().to_owned()]);
    }
    assemble::run(&Assemble::parse_from(words).args).unwrap();
    let loaded = sluice::bundle::load(&out).unwrap();
    assert_eq!((loaded.golden.len(), loaded.encoder.adapter.is_some()), (10, !more_files.is_empty()));

    let baseline = dir.path().join("baseline.toml");
    let mut words = vec!["evaluate".to_owned()];
    words.extend(columns(dir.path()));
    let (encoder, bundle, out) = (encoder(), dir.path().join("bundle"), dir.path().join("evaluation"));
    for (flag, path) in [("--encoder", &encoder), ("--bundle", &bundle), ("--out", &out), ("--baseline", &baseline)] {
        words.extend([flag.to_owned(), path.to_str().unwrap().to_owned()]);
    }
    let args = Evaluate::parse_from(words).args;
    std::fs::write(&baseline, "[minimum]\naccuracy = 0.9\n[maximum]\nselective_risk = 0.1\n").unwrap();
    evaluate::run(args.clone()).unwrap();
    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("K01") && report.contains("<svg") && !report.contains("<script"));
    let metrics: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("metrics.json")).unwrap()).unwrap();
    assert_eq!((&metrics["n"], &metrics["n_out_of_scope"]), (&60.into(), &12.into()));
    assert_eq!(predictions(&out.join("predictions.parquet")), 60);

    std::fs::write(&baseline, "[minimum]\naccuracy = 1.1\n").unwrap();
    let missed = evaluate::run(args).unwrap_err().to_string();
    assert!(missed.contains("`accuracy` is"), "{missed}");
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_weights() {
    struct Steps {
        stop_in_epoch: Option<usize>,
        n_steps: AtomicUsize,
    }

    impl Progress for Steps {
        fn prepared(&self, _: usize) {}

        fn step(&self, epoch: usize, _: usize, loss: f64) {
            assert!(loss.is_finite());
            assert_ne!(Some(epoch), self.stop_in_epoch, "interrupted");
            self.n_steps.fetch_add(1, Ordering::Relaxed);
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(encoder().join(name)).unwrap();
    let engine = CandleEncoder::load(&read("config.json"), &read("model.safetensors")).unwrap();
    let ids: Vec<Vec<u32>> = (0..24).map(|idx| vec![101, 2000 + idx % 3, 3000 + idx, 102]).collect();
    let labels: Vec<Label> = (0..3).map(|idx| Label { class: (idx < 2).then_some(idx), secondary: Vec::new() }).collect();
    let texts: Vec<TrainingText> =
        ids.iter().enumerate().map(|(idx, ids)| TrainingText { input_ids: ids, label: &labels[idx % 3] }).collect();
    let tune = |file: &str, stop_in_epoch: Option<usize>| {
        let params = FineTuneParams { rank: 2, trained_layers: 1, epochs: 3, batch_size: 8, ..FineTuneParams::DEFAULT };
        let checkpoint = Some(CheckpointFile { path: dir.path().join(file), encoder: "minilm".to_owned() });
        let run = Run { params, n_types: 2, outlier_weight: 0.3, seed: 7, checkpoint };
        let steps = Steps { stop_in_epoch, n_steps: AtomicUsize::new(0) };
        let tuned = catch_unwind(AssertUnwindSafe(|| fine_tune(&engine, &texts, &run, &steps).unwrap()));
        (tuned.ok().map(|tuned| tuned.adapter.to_safetensors().unwrap()), steps.n_steps.into_inner())
    };
    let (whole, n_steps) = tune("whole", None);
    assert_eq!(n_steps, 9);
    assert_eq!(tune("parts", Some(1)), (None, 3));
    let (resumed, n_steps) = tune("parts", None);
    assert_eq!(n_steps, 6);
    assert!(whole.is_some() && resumed == whole, "the weights differ");
    let (again, n_steps) = tune("parts", None);
    assert!(n_steps == 0 && again == whole, "a finished run is taken as it is");
}

/// Rows of the file, which say `unrecognized` exactly where they abstain.
fn predictions(path: &Path) -> usize {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    for row in &rows {
        assert_eq!(row.get_string(3).unwrap() == UNRECOGNIZED, row.get_bool(5).unwrap());
    }
    rows.len()
}
