//! Figures that a release must hold.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// A file of `eval/baselines/`: what a figure is at least or at most, by its name in `metrics.json` or in the `held_out` table of
/// `classifier.report.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    #[serde(default)]
    pub minimum: BTreeMap<String, f64>,
    #[serde(default)]
    pub maximum: BTreeMap<String, f64>,
}

impl Baseline {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("`{}` cannot be read", path.display()))?;
        toml::from_str(&text).with_context(|| format!("`{}` is no baseline", path.display()))
    }

    /// # Errors
    /// Every figure that misses its bound, is not defined or has an unknown name.
    pub fn check(&self, figures: &impl Serialize) -> Result<()> {
        let figures = serde_json::to_value(figures)?;
        let mut missed = Vec::new();
        let minima = self.minimum.iter().map(|(name, &bound)| (name, bound, "at least"));
        let maxima = self.maximum.iter().map(|(name, &bound)| (name, bound, "at most"));
        for (name, bound, side) in minima.chain(maxima) {
            let Some(figure) = figures.get(name) else { bail!("the baseline names `{name}`, which is no figure here") };
            let holds = figure.as_f64().is_some_and(|figure| if side == "at least" { figure >= bound } else { figure <= bound });
            if !holds {
                missed.push(format!("`{name}` is {figure}, {side} {bound} is expected"));
            }
        }
        ensure!(missed.is_empty(), "the baseline is missed: {}", missed.join("; "));
        Ok(())
    }
}
