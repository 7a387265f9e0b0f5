//! `sluice-eval train actions`: how often an action is acceptable for a type, learnt from cases with their acceptable actions.
//!
//! Counts, smoothed towards how often the action is acceptable over all types, so that a rare type borrows from the others. The
//! assumptions about cost and effect are copied beside them. The held-out figures come from the ranking that serves, one part of
//! the data left out at a time: every part has its own author, and a random split would flatter.
//!
//! It refuses codes that the taxonomy does not know, and data in one part only, because nothing could be held out.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sluice::classifier::{Candidate, Classification};
use sluice::event::Facts;
use sluice::recommend::{RecommendInput, Recommender};
use sluice::taxonomy::{MANUAL_REVIEW, Taxonomy, UNRECOGNIZED};
use sluice::text::TokenCount;

/// What acting costs and saves, where no other file is named.
pub const DEFAULT_ASSUMPTIONS: &str = include_str!("../assumptions/actions.toml");

/// How many cases the average over all types counts as, for every type.
pub const DEFAULT_SMOOTHING: f64 = 2.0;

/// Probabilities under this are left out of the file: they are smoothing, and the ranking does not show them.
const MINIMUM_PROBABILITY: f64 = 0.001;

/// What `sluice-eval train actions` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// JSON Lines with `type` and `acceptable_actions` (best first); one file for each author.
    #[arg(long, required = true, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Taxonomy whose types and actions are learnt.
    #[arg(long, default_value = "models/bundles/default/taxonomy.toml")]
    pub taxonomy: PathBuf,
    /// Settings, costs and effects; the embedded ones where none are named.
    #[arg(long)]
    pub assumptions: Option<PathBuf>,
    /// How many cases the average over all types counts as, for every type.
    #[arg(long, default_value_t = DEFAULT_SMOOTHING)]
    pub smoothing: f64,
    /// Folder for `actions.toml`.
    #[arg(long)]
    pub out: PathBuf,
}

/// Held-out figures of the action model, true types given: what the ranking alone is good for.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub n_cases: usize,
    pub n_parts: usize,
    /// Share of held-out cases whose first recommended action is acceptable.
    pub top1_acceptance: f64,
    /// Share whose first recommended action is the operator's first choice.
    pub top1_best: f64,
    /// Share with an acceptable action among the first three.
    pub top3_acceptance: f64,
    /// Top-1 acceptance by held-out part, in the order of `--data`.
    pub by_part: Vec<(String, f64)>,
    /// Top-1 acceptance by type, in the order of the taxonomy.
    pub by_type: Vec<(String, f64)>,
    pub actions_toml: PathBuf,
}

/// Learns the action model from all parts, writes `actions.toml` and measures what it is good for on parts left out.
///
/// # Errors
/// Where a file cannot be read or written, names an unknown code, or fewer than two parts are given.
pub fn run(args: &Args) -> Result<Report> {
    ensure!(args.data.len() >= 2, "give at least two parts, so that one can be held out");
    ensure!(args.smoothing.is_finite() && args.smoothing >= 0.0, "`--smoothing` must be a finite number, not negative");
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()));
    let taxonomy = Taxonomy::from_toml(&read(&args.taxonomy)?).context("the taxonomy is refused")?;
    let assumptions = match &args.assumptions {
        Some(path) => read(path)?,
        None => DEFAULT_ASSUMPTIONS.to_owned(),
    };
    let mut parts = Vec::with_capacity(args.data.len());
    for path in &args.data {
        let cases = parse(&read(path)?, &taxonomy).with_context(|| format!("in `{}`", path.display()))?;
        parts.push(Part { name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), cases });
    }
    let text = learn(parts.iter(), &taxonomy, &assumptions, args.smoothing);
    Recommender::from_toml(&text, &taxonomy).context("the learnt model is refused")?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create `{}`", args.out.display()))?;
    let actions_toml = args.out.join("actions.toml");
    fs::write(&actions_toml, text).with_context(|| format!("cannot write `{}`", actions_toml.display()))?;

    let mut tally = Tally::default();
    for (held_out_idx, held_out) in parts.iter().enumerate() {
        let others = parts.iter().enumerate().filter(|(part_idx, _)| *part_idx != held_out_idx).map(|(_, part)| part);
        let model = learn(others, &taxonomy, &assumptions, args.smoothing);
        let recommender = Recommender::from_toml(&model, &taxonomy).context("the learnt model is refused")?;
        tally.add(held_out, &recommender, &taxonomy);
    }
    Ok(tally.report(parts.len(), &taxonomy, actions_toml))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cases in {} parts, one held out at a time, true type given", self.n_cases, self.n_parts)?;
        writeln!(f, "top-1 acceptance  {:.4}", self.top1_acceptance)?;
        writeln!(f, "top-1 is the best {:.4}", self.top1_best)?;
        writeln!(f, "top-3 acceptance  {:.4}", self.top3_acceptance)?;
        for (name, share) in self.by_part.iter().chain(&self.by_type) {
            writeln!(f, "  {name:<26} {share:.4}")?;
        }
        Ok(())
    }
}

/// The cases of one author.
struct Part {
    name: String,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    r#type: String,
    acceptable_actions: Vec<String>,
}

/// Cases of a type; an `unrecognized` text has no type to learn about.
fn parse(text: &str, taxonomy: &Taxonomy) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (line_idx, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let case: Case = serde_json::from_str(line).with_context(|| format!("line {}", line_idx + 1))?;
        if case.r#type == UNRECOGNIZED {
            continue;
        }
        if taxonomy.type_by_code(&case.r#type).is_none() {
            bail!("line {}: `{}` is not a type of the taxonomy", line_idx + 1, case.r#type);
        }
        if let Some(code) = case.acceptable_actions.iter().find(|code| taxonomy.action_by_code(code).is_none()) {
            bail!("line {}: `{code}` is not an action of the taxonomy", line_idx + 1);
        }
        ensure!(!case.acceptable_actions.is_empty(), "line {}: no acceptable action", line_idx + 1);
        cases.push(case);
    }
    Ok(cases)
}

#[derive(Default)]
struct Counts {
    n: u64,
    acceptable: BTreeMap<String, u64>,
    best: BTreeMap<String, u64>,
}

impl Counts {
    fn add(&mut self, case: &Case) {
        self.n += 1;
        for (place, code) in case.acceptable_actions.iter().enumerate() {
            // A case that lists an action twice accepts it once.
            if case.acceptable_actions[..place].contains(code) {
                continue;
            }
            *self.acceptable.entry(code.clone()).or_default() += 1;
            if place == 0 {
                *self.best.entry(code.clone()).or_default() += 1;
            }
        }
    }
}

/// `(count + smoothing × share over all types) / (n + smoothing)`; for a type without a case, the share over all types.
fn smoothed(count: u64, n: u64, overall: f64, smoothing: f64) -> f64 {
    let weight = n as f64 + smoothing;
    if weight > 0.0 { (count as f64 + smoothing * overall) / weight } else { overall }
}

/// The text of `actions.toml`: the assumptions as they are, then a table for each type.
fn learn<'a>(parts: impl Iterator<Item = &'a Part>, taxonomy: &Taxonomy, assumptions: &str, smoothing: f64) -> String {
    let mut by_type: BTreeMap<&str, Counts> = BTreeMap::new();
    let mut overall = Counts::default();
    for case in parts.flat_map(|part| &part.cases) {
        by_type.entry(&case.r#type).or_default().add(case);
        overall.add(case);
    }
    let empty = Counts::default();
    let mut text =
        format!("# Written by `sluice-eval train actions` from {} cases; do not edit.\n\n{}\n", overall.n, assumptions.trim());
    for definition in &taxonomy.types {
        let counts = by_type.get(definition.code.as_str()).unwrap_or(&empty);
        let _ = write!(text, "\n[[type]]\ncode = \"{}\"\nn = {}\n", definition.code, counts.n);
        for (name, of_type, of_all) in
            [("acceptable", &counts.acceptable, &overall.acceptable), ("best", &counts.best, &overall.best)]
        {
            let mut entries = Vec::new();
            for action in &taxonomy.actions {
                let count = |counts: &BTreeMap<String, u64>| counts.get(&action.code).copied().unwrap_or(0);
                let share = smoothed(count(of_all), overall.n, 0.0, 0.0);
                let probability = smoothed(count(of_type), counts.n, share, smoothing);
                if probability >= MINIMUM_PROBABILITY {
                    entries.push(format!("{} = {probability:.4}", action.code));
                }
            }
            let _ = writeln!(text, "{name} = {{ {} }}", entries.join(", "));
        }
    }
    text
}

/// Hits and cases by name.
type Shares = BTreeMap<String, (usize, usize)>;

#[derive(Default)]
struct Tally {
    n_cases: usize,
    top1: usize,
    best: usize,
    top3: usize,
    by_part: Vec<(String, f64)>,
    by_type: Shares,
}

impl Tally {
    fn add(&mut self, part: &Part, recommender: &Recommender, taxonomy: &Taxonomy) {
        let mut accepted_in_part = 0;
        for case in &part.cases {
            let ranked = ranking(&case.r#type, recommender, taxonomy);
            let is_accepted = |action: &String| case.acceptable_actions.contains(action);
            let accepted = ranked.first().is_some_and(is_accepted);
            self.n_cases += 1;
            self.top1 += usize::from(accepted);
            self.best += usize::from(ranked.first() == case.acceptable_actions.first());
            self.top3 += usize::from(ranked.iter().take(3).any(is_accepted));
            accepted_in_part += usize::from(accepted);
            let of_type = self.by_type.entry(case.r#type.clone()).or_default();
            of_type.0 += usize::from(accepted);
            of_type.1 += 1;
        }
        self.by_part.push((part.name.clone(), share(accepted_in_part, part.cases.len())));
    }

    fn report(self, n_parts: usize, taxonomy: &Taxonomy, actions_toml: PathBuf) -> Report {
        let of_type = |code: &String| self.by_type.get(code).map(|(hits, n)| (code.clone(), share(*hits, *n)));
        Report {
            n_cases: self.n_cases,
            n_parts,
            top1_acceptance: share(self.top1, self.n_cases),
            top1_best: share(self.best, self.n_cases),
            top3_acceptance: share(self.top3, self.n_cases),
            by_part: self.by_part,
            by_type: taxonomy.types.iter().filter_map(|definition| of_type(&definition.code)).collect(),
            actions_toml,
        }
    }
}

fn share(hits: usize, n: usize) -> f64 {
    if n == 0 { 0.0 } else { hits as f64 / n as f64 }
}

/// The served ranking for a case of a known type and no facts, feasible actions only.
fn ranking(r#type: &str, recommender: &Recommender, taxonomy: &Taxonomy) -> Vec<String> {
    let candidate = Candidate { r#type: r#type.to_owned(), score: 1.0 };
    let classification = Classification {
        r#type: r#type.to_owned(),
        score: 1.0,
        acceptance: 1.0,
        abstained: false,
        candidates: vec![candidate],
        secondary_types: Vec::new(),
        novelty: 0.0,
        owner: None,
        tokens: TokenCount { total: 1, used: 1 },
        explanation: None,
    };
    let facts = Facts::default();
    let input = RecommendInput { taxonomy, classification: Some(&classification), facts: &facts, risk: None };
    let ranked = recommender.recommend(&input).into_iter();
    ranked.filter(|row| row.feasible && row.action != MANUAL_REVIEW).map(|row| row.action).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taxonomy() -> Taxonomy {
        Taxonomy::from_toml(include_str!("../../models/bundles/default/taxonomy.toml")).unwrap()
    }

    #[test]
    fn a_rare_type_borrows_from_the_others() {
        assert_eq!(smoothed(1, 1, 0.0, 0.0), 1.0);
        assert_eq!(smoothed(1, 1, 0.2, 1.0), 0.6);
        assert_eq!(smoothed(0, 0, 0.2, 2.0), 0.2);
        assert_eq!(smoothed(0, 0, 0.2, 0.0), 0.2);
    }

    #[test]
    fn an_unknown_code_is_refused_with_its_line() {
        let check = |line: &str, expected: &str| {
            let error = parse(&format!("\n{line}\n"), &taxonomy()).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        };
        check(r#"{"type":"flood","acceptable_actions":["cancel_line"]}"#, "line 2: `flood`");
        check(r#"{"type":"credit_hold","acceptable_actions":["pray"]}"#, "line 2: `pray`");
        check(r#"{"type":"credit_hold","acceptable_actions":[]}"#, "line 2: no acceptable action");
        check(r#"{"type":"credit_hold"}"#, "line 2");
    }

    #[test]
    fn what_is_learnt_is_what_the_service_ranks_by() {
        let line = |code: &str, actions: &str| format!(r#"{{"type":"{code}","acceptable_actions":{actions}}}"#);
        let lines = [
            line("credit_hold", r#"["request_payment","contact_customer"]"#),
            line("credit_hold", r#"["request_payment"]"#),
            line("damaged_stock", r#"["quarantine_stock"]"#),
            line("unrecognized", r#"["manual_review"]"#),
        ];
        let cases = parse(&lines.join("\n"), &taxonomy()).unwrap();
        assert_eq!(cases.len(), 3);
        let part = Part { name: "one".to_owned(), cases };
        let text = learn([&part].into_iter(), &taxonomy(), DEFAULT_ASSUMPTIONS, 0.5);
        let recommender = Recommender::from_toml(&text, &taxonomy()).unwrap();
        assert_eq!(ranking("credit_hold", &recommender, &taxonomy())[..2], ["request_payment", "contact_customer"]);
        assert_eq!(ranking("damaged_stock", &recommender, &taxonomy())[0], "quarantine_stock");
    }

    #[test]
    fn one_part_alone_cannot_be_measured() {
        let args = Args {
            data: vec![PathBuf::from("only.jsonl")],
            taxonomy: PathBuf::from("taxonomy.toml"),
            assumptions: None,
            smoothing: 2.0,
            out: PathBuf::from("out"),
        };
        assert!(run(&args).unwrap_err().to_string().contains("two parts"));
    }
}
