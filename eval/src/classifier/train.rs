//! The command: read, cross-validate, calibrate, certify, fit on everything, write.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sluice::bundle::ENCODER_ADAPTER;
use sluice::classifier::heads::Linear;
use sluice::classifier::{Calibration, Classifier, ClassifierArtefacts, ClassifierParts, Heads};
use sluice::taxonomy::{ActionDefinition, MANUAL_REVIEW, OwnerDefinition, Taxonomy, TypeDefinition};

use super::calibration::{HeldOut, Scored, apply, first_max, fit_calibration};
use super::dense::{DenseTrainer, EncoderTraining};
use super::folds::Folds;
use super::heads::{HeadParams, Label, Lexical, Sample, fit_lexical, lexical_rows};
use super::lexicon::{Selection, fit_lexicon, floor_blocks};
use super::report::{Figures, FloorFigures, GroupReport, TrainingReport, TypeReport, defined};
use super::solver::{Fit, fit};
use super::threshold::{Case, Target, ThresholdsFile, certify};
use crate::dataset::{Columns, Dataset};
use crate::finetune::FineTuneParams;
use crate::metrics;
use crate::parallel::in_parallel;
use crate::scoring::{DEFAULT_ENCODER, progress, read_encoder};

/// C = 10 of scikit-learn, tuned once on the default narratives.
const FLOOR_L2: f64 = 0.1;

/// What `sluice-eval train classifier` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub columns: Columns,
    /// Taxonomy whose types the labels are; without one the labels themselves become a taxonomy.
    #[arg(long)]
    pub taxonomy: Option<PathBuf>,
    /// Whether the encoder learns too: minutes to an hour, or seconds for heads on the encoder as it is.
    #[arg(long, value_enum, default_value_t = EncoderTraining::FineTuned)]
    pub encoder: EncoderTraining,
    /// Folder of the encoder: `config.json`, `tokenizer.json`, `model.safetensors`.
    #[arg(long, default_value = DEFAULT_ENCODER)]
    pub encoder_path: PathBuf,
    /// Bundle to write `classifier.toml`, `classifier.safetensors`, `adapter.safetensors`, `classifier.report.json` and
    /// `thresholds.toml` to.
    #[arg(long)]
    pub out: PathBuf,
    /// Folder that keeps checkpoints and embeddings between runs: a run that was interrupted goes on, and the next one of the same
    /// data repeats nothing. Also gets every held-out prediction, as `held_out.jsonl`.
    #[arg(long)]
    pub work: Option<PathBuf>,
    /// Parts of the data held out in turn; groups are held out whole. 10, or 3 where the encoder learns.
    #[arg(long)]
    pub folds: Option<usize>,
    /// Promise of the thresholds: largest share of wrong cases among those over them.
    #[arg(long, default_value_t = 0.05)]
    pub max_error: f64,
    #[arg(long, default_value_t = 0.95)]
    pub confidence: f64,
    #[command(flatten)]
    pub params: HeadParams,
    #[command(flatten)]
    pub fine_tune: FineTuneParams,
    /// Leaves the TF-IDF floor out of the folds, which halves their time.
    #[arg(long)]
    pub no_floor: bool,
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// Trains a classifier and writes its artefacts; prints the report.
///
/// # Errors
/// Data that cannot be read, labels that the taxonomy does not know, fewer than two types.
#[expect(clippy::print_stdout, reason = "the report of a command goes to its standard output")]
pub fn run(args: Args) -> Result<()> {
    println!("{}", train(&args)?);
    Ok(())
}

/// As [`run`], and returns the report instead of printing it.
pub fn train(args: &Args) -> Result<TrainingReport> {
    ensure!(0.0 < args.max_error && args.max_error < 1.0, "`--max-error` lies between 0 and 1");
    ensure!(0.0 < args.confidence && args.confidence < 1.0, "`--confidence` lies between 0 and 1");
    args.fine_tune.check()?;
    let dataset = Dataset::read(&args.columns)?;
    let taxonomy = taxonomy(args, &dataset)?;
    let training = Training::new(args, &dataset, &taxonomy)?;

    let outcomes = training.cross_validate()?;
    let held_out: Vec<HeldOut> = outcomes.iter().map(|outcome| outcome.held_out.clone()).collect();
    let scored = training.cross_fit(&held_out);
    if let Some(work) = &args.work {
        write_predictions(&work.join("held_out.jsonl"), &dataset, &training.types, &scored)?;
    }
    let calibration = fit_calibration(&held_out.iter().collect::<Vec<_>>());
    let everything: Vec<usize> = (0..dataset.examples.len()).collect();
    let dense = training.dense.fit("everything", &everything)?;
    let lexical = fit_lexical(&training.samples(&everything), training.types.len(), &args.params)?;
    let n_features = lexical.lexicon.n_features();
    let thresholds = training.certify(&scored);
    let report = training.report(&outcomes, &scored, &calibration, n_features, thresholds);

    let heads = Heads::new(lexical.lexicon, lexical.head, dense.head)?;
    let parts = ClassifierParts { types: training.types.clone(), heads, calibration };
    write(args, &taxonomy, parts, dense.adapter.as_deref(), &report)?;
    Ok(report)
}

/// The taxonomy of the arguments, or one made of the labels.
fn taxonomy(args: &Args, dataset: &Dataset) -> Result<Taxonomy> {
    if let Some(path) = &args.taxonomy {
        let text = std::fs::read_to_string(path).with_context(|| format!("`{}` cannot be read", path.display()))?;
        return Ok(Taxonomy::from_toml(&text)?);
    }
    let mut labels: Vec<&str> = dataset.examples.iter().map(|example| example.label.as_str()).collect();
    labels.retain(|label| *label != args.columns.oos_label);
    labels.sort_unstable();
    labels.dedup();
    let owner = "operations".to_owned();
    let types = labels.into_iter().map(|label| TypeDefinition {
        code: label.to_owned(),
        name: label.to_owned(),
        definition: format!("Texts labelled `{label}` in the training data."),
        not_this: None,
        owner: owner.clone(),
    });
    let manual = ActionDefinition {
        code: MANUAL_REVIEW.to_owned(),
        name: "Hand over to a person with the full context".to_owned(),
        reversible: true,
        touches: Vec::new(),
    };
    let taxonomy = Taxonomy {
        version: "1".to_owned(),
        types: types.collect(),
        actions: vec![manual],
        owners: vec![OwnerDefinition { code: owner }],
    };
    // Through its own text, so that it passes the checks of one that somebody wrote.
    Ok(Taxonomy::from_toml(&toml::to_string(&taxonomy)?)?)
}

/// One run's data, ready for the folds.
struct Training<'a> {
    args: &'a Args,
    dataset: &'a Dataset,
    types: Vec<String>,
    /// `None` where the text fits no type.
    classes: Vec<Option<usize>>,
    folds: Folds,
    dense: DenseTrainer,
}

/// What a fold says about one of its held-out examples.
#[derive(Clone)]
struct Outcome {
    held_out: HeldOut,
    /// Best class and its probability by the floor; `None` where the floor was left out.
    floor: Option<(usize, f64)>,
}

impl<'a> Training<'a> {
    fn new(args: &'a Args, dataset: &'a Dataset, taxonomy: &Taxonomy) -> Result<Self> {
        let types: Vec<String> = taxonomy.types.iter().map(|definition| definition.code.clone()).collect();
        ensure!(types.len() >= 2, "a classifier needs at least two types");
        let class_of = |label: &str| types.iter().position(|code| code == label);
        let mut classes = Vec::with_capacity(dataset.examples.len());
        for example in &dataset.examples {
            let class = class_of(&example.label);
            ensure!(
                class.is_some() || example.label == args.columns.oos_label,
                "the label `{}` is neither a type of the taxonomy nor `{}`",
                example.label,
                args.columns.oos_label
            );
            classes.push(class);
        }
        for (class, code) in types.iter().enumerate() {
            ensure!(classes.contains(&Some(class)), "the type `{code}` has no example");
        }
        let groups: Vec<usize> = dataset.examples.iter().map(|example| example.group).collect();
        let labels: Vec<usize> = classes.iter().map(|class| class.unwrap_or(types.len())).collect();
        let n_folds = args.folds.unwrap_or(args.encoder.default_folds());
        ensure!(n_folds >= 2, "`--folds` is at least 2");
        let folds = Folds::new(&groups, &dataset.groups, &labels, n_folds, args.seed);
        if let Some(work) = &args.work {
            std::fs::create_dir_all(work).with_context(|| format!("`{}` cannot be created", work.display()))?;
        }
        let texts: Vec<&str> = dataset.examples.iter().map(|example| example.text.as_str()).collect();
        let encoder = read_encoder(&args.encoder_path)?;
        let labels = dataset.examples.iter().zip(&classes).map(|(example, &class)| {
            let secondary = example.secondary.iter().filter_map(|code| class_of(code)).collect();
            Label { class, secondary }
        });
        let dense = DenseTrainer::new(args, encoder, &texts, labels.collect(), types.len())?;
        Ok(Self { args, dataset, types, classes, folds, dense })
    }

    fn samples(&self, examples: &[usize]) -> Vec<Sample<'_>> {
        examples.iter().map(|&idx| Sample { text: self.dense.text(idx), class: self.classes[idx] }).collect()
    }

    /// Fits heads on all folds but one and scores that one, for every fold. Order of the examples.
    fn cross_validate(&self) -> Result<Vec<Outcome>> {
        let folds: Vec<usize> = (0..self.folds.n_folds()).collect();
        let bar = progress(folds.len(), "words");
        bar.tick();
        // Folds share nothing, so the number of threads changes no figure.
        let lexical = in_parallel(&folds, |&fold| {
            let training = self.samples(&self.folds.training(fold));
            let lexical = fit_lexical(&training, self.types.len(), &self.args.params)?;
            let held_out = self.folds.held_out(fold);
            let floor = if self.args.no_floor { vec![None; held_out.len()] } else { self.floor(&training, &held_out)? };
            bar.inc(1);
            Ok((lexical, floor))
        })?;
        bar.finish_and_clear();

        let mut outcomes = vec![None; self.classes.len()];
        for (fold, (Lexical { lexicon, head }, floor)) in lexical.into_iter().enumerate() {
            let name = format!("fold {} of {}", fold + 1, folds.len());
            let dense = self.dense.fit(&name, &self.folds.training(fold))?;
            let held_out = self.folds.held_out(fold);
            let embeddings = self.dense.embed(&dense, &held_out)?;
            let heads = Heads::new(lexicon, head, dense.head)?;
            for ((idx, floor), windows) in held_out.into_iter().zip(floor).zip(embeddings) {
                let raw = heads.raw_scores(self.dense.text(idx), &windows);
                let Label { class, secondary } = self.dense.label(idx).clone();
                let held_out = HeldOut { raw, tokens: self.dense.tokens(idx), class, secondary };
                outcomes[idx] = Some(Outcome { held_out, floor });
            }
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.expect("every example is held out once")).collect())
    }

    /// TF-IDF with logistic regression, fitted on the in-scope texts alone.
    fn floor(&self, training: &[Sample<'_>], held_out: &[usize]) -> Result<Vec<Option<(usize, f64)>>> {
        let n_types = self.types.len();
        let training: Vec<&Sample<'_>> = training.iter().filter(|sample| sample.class.is_some()).collect();
        let texts: Vec<&str> = training.iter().map(|sample| sample.text).collect();
        let selection = Selection { min_document_frequency: 1, max_features: usize::MAX };
        let lexicon = fit_lexicon(&texts, floor_blocks(), selection)?;
        let mut targets = vec![0.0; training.len() * n_types];
        for (target, sample) in targets.chunks_exact_mut(n_types).zip(&training) {
            target[sample.class.expect("only in-scope samples are left")] = 1.0;
        }
        let head: Linear = fit(&lexical_rows(&lexicon, &texts), &targets, &[n_types], Fit::with_l2(FLOOR_L2));
        let score = |&idx: &usize| {
            let entries = lexicon.vectorize(self.dense.text(idx)).entries;
            let logits = head.forward(entries.into_iter().map(|(feature, value)| (feature as usize, value)));
            let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
            let best = first_max(&logits);
            let sum: f64 = logits.iter().map(|logit| (logit - logits[best]).exp()).sum();
            Some((best, 1.0 / sum))
        };
        Ok(held_out.iter().map(score).collect())
    }

    /// Scores each fold with a calibration fitted on the other folds, so that no figure is one of its own examples'.
    fn cross_fit(&self, held_out: &[HeldOut]) -> Vec<Scored> {
        let mut scored: Vec<Option<Scored>> = vec![None; held_out.len()];
        for fold in 0..self.folds.n_folds() {
            let others: Vec<&HeldOut> = self.folds.training(fold).into_iter().map(|idx| &held_out[idx]).collect();
            let calibration = fit_calibration(&others);
            for idx in self.folds.held_out(fold) {
                scored[idx] = Some(apply(&calibration, &held_out[idx]));
            }
        }
        scored.into_iter().map(|row| row.expect("every example is held out once")).collect()
    }

    fn certify(&self, scored: &[Scored]) -> ThresholdsFile {
        let target = Target::new(self.args.max_error, self.args.confidence);
        let thresholds = self.types.iter().enumerate().map(|(class, code)| {
            let named = scored.iter().filter(|row| !row.abstained && row.best == class);
            let cases: Vec<Case> = named.map(|row| Case { acceptance: row.acceptance, wrong: !row.is_right() }).collect();
            certify(code, &cases, target)
        });
        let held_out = if self.folds.by_group { "whole groups held out" } else { "random folds held out" };
        ThresholdsFile {
            max_error: target.max_error,
            confidence: target.confidence,
            method: format!(
                "learn then test, multi-start fixed sequence ({} runs of {} cuts) on exact Clopper-Pearson bounds, each type on its own",
                target.n_starts, target.n_steps
            ),
            split: format!(
                "{} training texts in {} folds, {held_out}, scored by heads and calibration that did not see them",
                scored.len(),
                self.folds.n_folds()
            ),
            thresholds: thresholds.collect(),
        }
    }

    fn report(
        &self,
        outcomes: &[Outcome],
        scored: &[Scored],
        calibration: &Calibration,
        n_features: usize,
        thresholds: ThresholdsFile,
    ) -> TrainingReport {
        let n_types = self.types.len();
        let floor = |examples: &[usize]| {
            let in_scope = examples.iter().filter_map(|&idx| Some((self.classes[idx]?, outcomes[idx].floor?.0)));
            let (actual, named): (Vec<_>, Vec<_>) = in_scope.unzip();
            (metrics::accuracy(&actual, &named), metrics::macro_f1(&actual, &named))
        };
        let groups = if self.folds.by_group { self.dataset.groups.as_slice() } else { &[] };
        let groups = groups.iter().enumerate().map(|(group, name)| {
            let held_out: Vec<usize> = (0..scored.len()).filter(|&idx| self.dataset.examples[idx].group == group).collect();
            let rows: Vec<&Scored> = held_out.iter().map(|&idx| &scored[idx]).collect();
            let figures = Figures::of(&rows, n_types);
            let (floor_accuracy, floor_macro_f1) = floor(&held_out);
            GroupReport {
                group: name.clone(),
                n: rows.iter().filter(|row| row.class.is_some()).count(),
                accuracy: figures.accuracy,
                macro_f1: figures.macro_f1,
                floor_accuracy,
                floor_macro_f1,
                novelty_roc_auc: figures.roc_auc_novelty,
            }
        });
        let everything: Vec<usize> = (0..scored.len()).collect();
        let (floor_accuracy, floor_macro_f1) = floor(&everything);
        let floor_separation = {
            let rows: Vec<_> = outcomes
                .iter()
                .zip(&self.classes)
                .filter_map(|(outcome, class)| Some((class.is_none(), -outcome.floor?.1)))
                .collect();
            let (out, scores): (Vec<bool>, Vec<f64>) = rows.into_iter().unzip();
            defined(metrics::roc_auc(&out, &scores))
        };
        let actual: Vec<usize> = scored.iter().map(|row| row.class.unwrap_or(n_types)).collect();
        let named: Vec<usize> = scored.iter().map(|row| if row.abstained { n_types } else { row.best }).collect();
        let reports = metrics::class_reports(&actual, &named);
        TrainingReport {
            seed: self.args.seed,
            data: self.dataset.files.clone(),
            n_in_scope: self.classes.iter().flatten().count(),
            n_out_of_scope: self.classes.iter().filter(|class| class.is_none()).count(),
            types: self.types.clone(),
            held_out_by_group: self.folds.by_group,
            encoder: self.args.encoder,
            n_folds: self.folds.n_folds(),
            params: self.args.params,
            fine_tune: (self.args.encoder == EncoderTraining::FineTuned).then_some(self.args.fine_tune),
            lexical_weight: calibration.lexical_weight,
            dense_weight: calibration.dense_weight,
            novelty_threshold: calibration.novelty_threshold,
            secondary_level: calibration.secondary_level,
            n_features,
            groups: groups.collect(),
            held_out: Figures::of(&scored.iter().collect::<Vec<_>>(), n_types),
            floor: FloorFigures { accuracy: floor_accuracy, macro_f1: floor_macro_f1, roc_auc_score: floor_separation },
            per_type: self
                .types
                .iter()
                .zip(reports)
                .map(|(code, report)| TypeReport {
                    r#type: code.clone(),
                    support: report.support,
                    precision: report.precision,
                    recall: report.recall,
                    f1: report.f1,
                })
                .collect(),
            thresholds,
        }
    }
}

/// Every held-out prediction with its text: what to read to find confusions and wrong labels.
fn write_predictions(path: &Path, dataset: &Dataset, types: &[String], scored: &[Scored]) -> Result<()> {
    let mut lines = String::new();
    for (example, row) in dataset.examples.iter().zip(scored) {
        let label_probability = row.class.map(|class| row.probabilities[class]);
        let line = serde_json::json!({
            "group": dataset.groups[example.group], "label": example.label, "best": types[row.best], "score": row.score(),
            "label_score": label_probability, "novelty": row.novelty, "acceptance": row.acceptance, "abstained": row.abstained,
            "text": example.text,
        });
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    std::fs::write(path, lines).with_context(|| format!("`{}` cannot be written", path.display()))
}

fn write(args: &Args, taxonomy: &Taxonomy, parts: ClassifierParts, adapter: Option<&[u8]>, report: &TrainingReport) -> Result<()> {
    let out: &Path = &args.out;
    let (config, weights) = parts.write()?;
    // What was written must be what serves, so it is loaded as the service would before it lands in the bundle.
    Classifier::load(&ClassifierArtefacts { config: config.as_bytes(), weights: &weights }, taxonomy)?;
    std::fs::create_dir_all(out).with_context(|| format!("`{}` cannot be created", out.display()))?;
    let save = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("`{}` cannot be written", path.display()))
    };
    save("classifier.toml", config.as_bytes())?;
    save("classifier.safetensors", &weights)?;
    match adapter {
        Some(adapter) => save(ENCODER_ADAPTER, adapter)?,
        // One of an earlier run would change the encoder under heads that never saw it.
        None => remove(&out.join(ENCODER_ADAPTER))?,
    }
    save("classifier.report.json", &serde_json::to_vec_pretty(report)?)?;
    save("thresholds.toml", toml::to_string(&report.thresholds)?.as_bytes())?;
    if args.taxonomy.is_none() {
        save("taxonomy.toml", toml::to_string(taxonomy)?.as_bytes())?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("`{}` cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}
