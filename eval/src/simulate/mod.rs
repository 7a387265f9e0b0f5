//! `sluice-eval simulate`: a synthetic case history with known ground truth.
//!
//! [`World`] draws a distributor once (sites, carriers, customers, items); [`mechanism`] makes one exception after another in the
//! order of time: its true facts, what a fallible operator does about it, what comes of that and why; [`observe`] hides facts the
//! way source systems do, after the outcome is drawn from the true ones. Every line says `"synthetic": true`. The assumptions
//! stand in `training-data/cases/README.md`.
//!
//! It refuses to read anything but narratives, so no real case can slip in; equal arguments give equal bytes.

mod mechanism;
mod observe;
mod world;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rand::Rng;
use rand::SeedableRng;
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};
use sluice::event::EventWire;
use time::{Duration, OffsetDateTime};

pub use mechanism::TYPES;
use world::World;

/// First moment of every history; the second year ends it.
const START: OffsetDateTime = time::macros::datetime!(2024-01-01 00:00 UTC);
/// Days of history, whatever the number of cases: two seasons of everything.
const DAYS: usize = 730;
/// The narrative of a case that is given none.
const NO_NARRATIVE: &str = "(synthetic case without narrative)";

/// What `sluice-eval simulate` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Cases to make.
    #[arg(long)]
    pub cases: usize,
    /// Equal seeds give equal files.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// File to write, one JSON object a line.
    #[arg(long)]
    pub out: PathBuf,
    /// Folder of narrative files (`*.jsonl` with `narrative` and `type`) to draw from by type; without it every case says that it
    /// has no narrative.
    #[arg(long)]
    pub narratives: Option<PathBuf>,
}

/// One line of a case history.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Case {
    pub case_id: String,
    /// Always true here; a distributor's own history leaves it out.
    #[serde(default)]
    pub synthetic: bool,
    /// The event in its wire form, with the facts its source system knew.
    pub event: EventWire,
    pub true_type: String,
    /// Id of the narrative drawn, where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub narrative_id: Option<String>,
    /// What the operator did.
    pub action: ChosenAction,
    pub outcome: CaseOutcome,
    /// What only a simulator knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<Truth>,
}

/// The action taken, and how the operator came to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChosenAction {
    pub code: String,
    /// Probability with which the operator chose it.
    pub propensity: f64,
}

/// What came of a case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaseOutcome {
    pub sla_breached: bool,
    /// Loss in the order's currency.
    pub revenue_loss: f64,
    /// Loss as a fraction of order value, 0 to 1.
    pub loss_fraction: f64,
    /// `cancelled`, `penalty`, `handling` or `none`.
    pub loss_cause: String,
}

/// Ground truth of a simulated case, given its true facts and the action taken.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Truth {
    pub breach_probability: f64,
    pub expected_loss_fraction: f64,
    /// Breach probability under each action that was feasible, in their order.
    pub best_breach_probability: f64,
}

/// Writes a case history.
///
/// # Errors
/// Where a file cannot be read or written, or narratives are asked for and none is found.
pub fn run(args: &Args) -> Result<()> {
    let narratives = args.narratives.as_deref().map(Narratives::read).transpose()?.unwrap_or_default();
    let file = File::create(&args.out).with_context(|| format!("cannot write `{}`", args.out.display()))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let bar = ProgressBar::new(args.cases as u64);
    bar.set_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} cases, {per_sec}, {eta} left").expect("the template is valid"),
    );
    for case in Simulator::new(args.cases, args.seed, &narratives) {
        serde_json::to_writer(&mut writer, &case)?;
        writer.write_all(b"\n")?;
        bar.inc(1);
    }
    writer.flush()?;
    bar.finish();
    Ok(())
}

/// Texts by type.
#[derive(Debug, Default)]
pub struct Narratives {
    by_type: BTreeMap<String, Vec<(String, String)>>,
}

#[derive(Deserialize)]
struct NarrativeLine {
    id: String,
    narrative: String,
    r#type: String,
}

impl Narratives {
    /// Reads every `*.jsonl` of a folder, in the order of their names.
    ///
    /// # Errors
    /// Where the folder or a line cannot be read, or no line is found.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .with_context(|| format!("cannot read `{}`", folder.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
        paths.sort();
        let mut narratives = Self::default();
        for path in paths {
            let file = File::open(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            for (line_idx, line) in BufReader::new(file).lines().enumerate() {
                let line: NarrativeLine =
                    serde_json::from_str(&line?).with_context(|| format!("line {} of `{}`", line_idx + 1, path.display()))?;
                narratives.by_type.entry(line.r#type).or_default().push((line.id, line.narrative));
            }
        }
        anyhow::ensure!(!narratives.by_type.is_empty(), "`{}` holds no narratives", folder.display());
        Ok(narratives)
    }

    fn draw(&self, case_type: &str, rng: &mut Pcg64) -> (Option<String>, String) {
        match self.by_type.get(case_type).map(Vec::as_slice) {
            None | Some([]) => (None, NO_NARRATIVE.to_owned()),
            Some(texts) => {
                let (id, text) = &texts[rng.random_range(0..texts.len())];
                (Some(id.clone()), text.clone())
            }
        }
    }
}

/// An endless distributor, stopped after a number of cases.
#[derive(Debug)]
pub struct Simulator<'a> {
    world: World,
    rng: Pcg64,
    narratives: &'a Narratives,
    n_cases: usize,
    made: usize,
    /// Share of all cases that fall before the end of each hour of the history.
    cumulative_intensity: Vec<f64>,
}

impl<'a> Simulator<'a> {
    pub fn new(n_cases: usize, seed: u64, narratives: &'a Narratives) -> Self {
        let mut rng = Pcg64::seed_from_u64(seed);
        let world = World::draw(&mut rng);
        Self { world, rng, narratives, n_cases, made: 0, cumulative_intensity: cumulative_intensity() }
    }

    /// Cases come in the order of time: the `i`th of `n` falls into the `i`th `n`th of the history's intensity.
    fn next_moment(&mut self) -> OffsetDateTime {
        let share = (self.made as f64 + self.rng.random::<f64>()) / self.n_cases as f64;
        let hour = self.cumulative_intensity.partition_point(|upto| *upto < share).min(self.cumulative_intensity.len() - 1);
        let before = if hour == 0 { 0.0 } else { self.cumulative_intensity[hour - 1] };
        let within = (share - before) / (self.cumulative_intensity[hour] - before);
        START + Duration::seconds((hour as i64) * 3600 + (within.clamp(0.0, 1.0) * 3599.0) as i64)
    }
}

impl Iterator for Simulator<'_> {
    type Item = Case;

    fn next(&mut self) -> Option<Case> {
        if self.made == self.n_cases {
            return None;
        }
        let moment = self.next_moment();
        self.made += 1;
        let exception = mechanism::Exception::draw(&self.world, moment, &mut self.rng);
        let resolution = exception.resolve(&mut self.rng);
        let (narrative_id, narrative) = self.narratives.draw(exception.case_type, &mut self.rng);
        let event = observe::event(&exception, self.made, narrative, &mut self.rng);
        Some(Case {
            case_id: format!("case-{:08}", self.made),
            synthetic: true,
            event,
            true_type: exception.case_type.to_owned(),
            narrative_id,
            action: resolution.action,
            outcome: resolution.outcome,
            truth: Some(resolution.truth),
        })
    }
}

/// Exceptions follow the working day (UTC), the week and the fourth-quarter peak.
fn cumulative_intensity() -> Vec<f64> {
    let mut total = 0.0;
    let mut cumulative: Vec<f64> = (0..DAYS * 24)
        .map(|hour| {
            let moment = START + Duration::hours(hour as i64);
            let daily = if (7..20).contains(&moment.hour()) { 1.0 } else { 0.35 };
            let weekly = if moment.weekday().number_days_from_monday() >= 5 { 0.3 } else { 1.0 };
            let season = if u8::from(moment.month()) >= 11 { 1.5 } else { 1.0 };
            total += daily * weekly * season;
            total
        })
        .collect();
    for upto in &mut cumulative {
        *upto /= total;
    }
    cumulative
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(n_cases: usize, seed: u64) -> Vec<Case> {
        Simulator::new(n_cases, seed, &Narratives::default()).collect()
    }

    #[test]
    fn equal_seeds_give_equal_histories_and_others_differ() {
        let text = |seed| history(300, seed).iter().map(|case| serde_json::to_string(case).unwrap()).collect::<Vec<_>>();
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn every_event_is_acceptable_to_the_service_and_marked_synthetic() {
        let limits = sluice::event::EventLimits { max_narrative_chars: 8_192, max_lines: 500, max_attributes: 64 };
        for case in history(2_000, 5) {
            assert!(case.synthetic);
            case.event.into_event(&limits).unwrap_or_else(|error| panic!("{}: {} {}", case.case_id, error.field, error.message));
        }
    }

    #[test]
    fn outcomes_follow_the_ground_truth() {
        let cases = history(20_000, 6);
        let truth = |case: &Case| case.truth.unwrap();
        for (low, high) in [(0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0)] {
            let part: Vec<&Case> = cases.iter().filter(|case| (low..high).contains(&truth(case).breach_probability)).collect();
            let expected = part.iter().map(|case| truth(case).breach_probability).sum::<f64>() / part.len() as f64;
            let breached = part.iter().filter(|case| case.outcome.sla_breached).count() as f64 / part.len() as f64;
            assert!((expected - breached).abs() < 0.03, "{low} to {high}: {expected} and {breached} of {}", part.len());
        }
        let mean = |value: fn(&Case) -> f64| cases.iter().map(value).sum::<f64>() / cases.len() as f64;
        let (expected, lost) = (mean(|case| case.truth.unwrap().expected_loss_fraction), mean(|case| case.outcome.loss_fraction));
        assert!((expected - lost).abs() < 0.01, "{expected} and {lost}");
    }

    #[test]
    fn cases_come_in_the_order_of_time_and_some_say_nothing() {
        let cases = history(2_000, 7);
        assert!(cases.windows(2).all(|pair| pair[0].event.occurred_at <= pair[1].event.occurred_at));
        let bare = cases
            .iter()
            .filter(|case| case.event.order.is_none() && case.event.customer.is_none() && case.event.shipment.is_none());
        assert!((0.04..0.2).contains(&(bare.count() as f64 / 2_000.0)));
    }

    #[test]
    fn narratives_are_drawn_by_type() {
        let folder = tempfile::tempdir().unwrap();
        let line = r#"{"id":"n-1","narrative":"short again","type":"inventory_shortfall","language":"en"}"#;
        std::fs::write(folder.path().join("part.jsonl"), line).unwrap();
        let narratives = Narratives::read(folder.path()).unwrap();
        for case in Simulator::new(200, 1, &narratives) {
            let short = case.true_type == "inventory_shortfall";
            assert_eq!(case.event.narrative == "short again", short);
            assert_eq!(case.narrative_id.is_some(), short);
        }
    }
}
