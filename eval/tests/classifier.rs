//! Training and evaluating on a small set of a distributor's own codes, end to end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::{Path, PathBuf};

use clap::Parser;
use sluice::taxonomy::UNRECOGNIZED;
use sluice_eval::classifier::train;
use sluice_eval::evaluate;

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

fn train(dir: &Path, out: &str) -> train::Args {
    let mut words = vec!["train".to_owned()];
    words.extend(columns(dir));
    let (encoder, cache, out) = (encoder(), dir.join("embeddings"), dir.join(out));
    for (flag, path) in [("--encoder", &encoder), ("--embeddings", &cache), ("--out", &out)] {
        words.extend([flag.to_owned(), path.to_str().unwrap().to_owned()]);
    }
    Train::parse_from(words).args
}

#[test]
fn any_codes_make_a_bundle_that_evaluates() {
    let dir = tempfile::tempdir().unwrap();
    let report = train::train(&train(dir.path(), "bundle")).unwrap();
    assert_eq!(report.types, ["K01", "K02"]);
    assert!(report.held_out_by_group && report.folds.len() == 4);
    assert!(report.held_out.accuracy > 0.9, "{report}");
    assert!(report.held_out.roc_auc_novelty.unwrap() > 0.9, "{report}");
    assert!(report.thresholds.thresholds.iter().all(|row| row.insufficient_evidence && row.threshold.is_none()));

    train::train(&train(dir.path(), "again")).unwrap();
    for file in ["classifier.toml", "classifier.safetensors", "thresholds.toml", "taxonomy.toml"] {
        let read = |out: &str| std::fs::read(dir.path().join(out).join(file)).unwrap();
        assert!(read("bundle") == read("again"), "`{file}` differs between two runs with one seed");
    }

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
