//! `sluice-eval train classifier`: heads, calibration and thresholds from labelled texts, whatever the taxonomy.
//!
//! [`train`] is the way through: [`folds`] hold out whole groups, [`heads`] fits on the
//! rest, [`dense`] lets the encoder learn from it, [`calibration`] and [`threshold`]
//! look at held-out predictions only, and a TF-IDF floor runs beside it on the same folds. It refuses to show a figure of texts
//! whose group the heads had seen.

pub mod calibration;
pub mod dense;
pub mod folds;
pub mod heads;
pub mod lexicon;
pub mod logistic;
pub mod report;
pub mod solver;
pub mod threshold;
pub mod train;
