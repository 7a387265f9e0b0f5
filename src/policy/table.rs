//! Decision tables: rows of typed cells, the first hit counts, and the last row catches everything.
//!
//! A cell that cannot be evaluated because its fact is missing makes its row *possible*: it neither hits nor misses. A look-up
//! gives every possible row before the first certain one, and callers take the strictest of them, so a missing fact never frees a
//! case. A table is checked when it is compiled: rows that can never be reached, a missing catch-all, and pairs of rows by which a
//! case would become freer as its value or its risk rises.
//!
//! It refuses to know what a row's effect means; it is told how strict the effect is. [`super::view`] says what a cell is compared
//! with.

use super::PolicyError;
use super::view::{CaseView, Dimension, Value};

/// What a row asks of a case: for each dimension, the accepted values, or anything.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Condition {
    pub(super) cells: [Option<Vec<String>>; Dimension::COUNT],
}

/// One row of a table.
#[derive(Debug)]
pub(super) struct Row<E> {
    pub(super) id: String,
    pub(super) condition: Condition,
    pub(super) effect: E,
}

/// A row that may decide a case.
#[derive(Debug)]
pub(super) struct Candidate<'t, E> {
    pub(super) row: &'t Row<E>,
    /// Whether the row hits, as opposed to being undecidable for want of a fact.
    pub(super) certain: bool,
}

/// A compiled table. Its hit policy is *first*.
#[derive(Debug)]
pub(super) struct DecisionTable<E> {
    rows: Vec<Row<E>>,
}

/// How a condition fits a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Hits,
    Possible,
    Misses,
}

impl<E> DecisionTable<E> {
    /// Checks and keeps the rows. `strictness` orders effects, larger is stricter; `value_bands` are in rising order.
    ///
    /// # Errors
    /// Duplicate ids, no catch-all at the end, unreachable rows, rows that free a case as its value or risk rises.
    pub(super) fn compile(
        name: &'static str,
        rows: Vec<Row<E>>,
        value_bands: &[String],
        strictness: impl Fn(&E) -> u8,
    ) -> Result<Self, PolicyError> {
        for (row_idx, row) in rows.iter().enumerate() {
            if rows[..row_idx].iter().any(|earlier| earlier.id == row.id) {
                return Err(PolicyError::DuplicateId { table: name, id: row.id.clone() });
            }
        }
        if !rows.last().is_some_and(|last| last.condition.is_catch_all()) {
            return Err(PolicyError::NoCatchAll { table: name });
        }
        for (row_idx, row) in rows.iter().enumerate() {
            if let Some(earlier) = rows[..row_idx].iter().find(|earlier| earlier.condition.subsumes(&row.condition)) {
                return Err(PolicyError::Unreachable { table: name, id: row.id.clone(), earlier: earlier.id.clone() });
            }
        }
        let table = Self { rows };
        let risk_bands = ["low", "medium", "high"].map(str::to_owned);
        table.check_monotone(name, Dimension::ValueBand, value_bands, &strictness)?;
        table.check_monotone(name, Dimension::SlaRisk, &risk_bands, &strictness)?;
        Ok(table)
    }

    /// Every row that may decide the case: possible ones in order, up to and including the first that certainly hits. Never
    /// empty, and the last one is certain, because the last row catches everything.
    pub(super) fn candidates(&self, view: &CaseView<'_>) -> impl Iterator<Item = Candidate<'_, E>> {
        let mut decided = false;
        self.rows.iter().filter_map(move |row| {
            if decided {
                return None;
            }
            let fit = row.condition.fit(view);
            decided = fit == Fit::Hits;
            (fit != Fit::Misses).then_some(Candidate { row, certain: decided })
        })
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Refuses a pair of rows where a case that rises along `dimension` would move from the stricter `held` to the freer `freed`.
    ///
    /// The pair is harmless where, at the higher level, a row before `freed` takes every case that both could meet (that row is then
    /// compared with `held` itself), or where, at the lower level, a row before `held` certainly takes every case that `freed` does.
    /// Both hold with facts missing too, so the check covers what the candidates of a look-up are, not only what hits.
    fn check_monotone(
        &self,
        name: &'static str,
        dimension: Dimension,
        levels: &[String],
        strictness: &impl Fn(&E) -> u8,
    ) -> Result<(), PolicyError> {
        for (held_idx, held) in self.rows.iter().enumerate() {
            for (freed_idx, freed) in self.rows.iter().enumerate() {
                if strictness(&freed.effect) >= strictness(&held.effect) || !held.condition.meets(&freed.condition, dimension) {
                    continue;
                }
                for (low_idx, low) in levels.iter().enumerate() {
                    for high in &levels[low_idx + 1..] {
                        let rises = held.condition.accepts(dimension, low) && freed.condition.accepts(dimension, high);
                        let taken_over = self.rows[..freed_idx].iter().any(|between| {
                            between.condition.accepts(dimension, high)
                                && between.condition.covers_both(&held.condition, &freed.condition, dimension)
                        });
                        let taken_before = self.rows[..held_idx].iter().any(|between| {
                            between.condition.accepts(dimension, low)
                                && between.condition.subsumes_but_for(&freed.condition, dimension)
                        });
                        if rises && !taken_over && !taken_before {
                            return Err(PolicyError::NotMonotone {
                                table: name,
                                held: held.id.clone(),
                                freed: freed.id.clone(),
                                low: low.clone(),
                                high: high.clone(),
                            });
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl Condition {
    pub(super) fn is_catch_all(&self) -> bool {
        self.cells.iter().all(Option::is_none)
    }

    pub(super) fn cell(&self, dimension: Dimension) -> Option<&[String]> {
        self.cells[dimension as usize].as_deref()
    }

    fn fit(&self, view: &CaseView<'_>) -> Fit {
        let mut fit = Fit::Hits;
        for dimension in Dimension::ALL {
            let Some(accepted) = self.cell(dimension) else { continue };
            match view.value(dimension) {
                Value::Missing => fit = Fit::Possible,
                value if value.iter().any(|value| contains(accepted, value)) => {}
                _ => return Fit::Misses,
            }
        }
        fit
    }

    /// Whether every case that `other` may meet is met by `self`.
    fn subsumes(&self, other: &Self) -> bool {
        Dimension::ALL.into_iter().all(|dimension| includes(self.cell(dimension), other.cell(dimension)))
    }

    /// As [`Condition::subsumes`], whatever they are along `free`.
    fn subsumes_but_for(&self, other: &Self, free: Dimension) -> bool {
        let mut others = Dimension::ALL.into_iter().filter(|dimension| *dimension != free);
        others.all(|dimension| includes(self.cell(dimension), other.cell(dimension)))
    }

    fn accepts(&self, dimension: Dimension, value: &str) -> bool {
        self.cell(dimension).is_none_or(|accepted| contains(accepted, value))
    }

    /// Whether some case could meet both, whatever it is along `free`.
    fn meets(&self, other: &Self, free: Dimension) -> bool {
        Dimension::ALL.into_iter().filter(|dimension| *dimension != free).all(|dimension| {
            match (self.cell(dimension), other.cell(dimension)) {
                // An action may touch several things at once, so two different cells can both be met.
                (Some(left), Some(right)) if !dimension.is_multiple() => left.iter().any(|value| contains(right, value)),
                _ => true,
            }
        })
    }

    /// Whether `self` meets every case that meets both `left` and `right`, whatever it is along `free`.
    fn covers_both(&self, left: &Self, right: &Self, free: Dimension) -> bool {
        Dimension::ALL.into_iter().filter(|dimension| *dimension != free).all(|dimension| {
            let (own, left, right) = (self.cell(dimension), left.cell(dimension), right.cell(dimension));
            if includes(own, left) || includes(own, right) {
                return true;
            }
            match (own, left, right) {
                (Some(own), Some(left), Some(right)) if !dimension.is_multiple() => {
                    left.iter().filter(|value| contains(right, value)).all(|value| contains(own, value))
                }
                _ => false,
            }
        })
    }
}

fn includes(wide: Option<&[String]>, narrow: Option<&[String]>) -> bool {
    match (wide, narrow) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => narrow.iter().all(|value| contains(wide, value)),
    }
}

/// Source systems disagree about capitals (`Gold`, `GOLD`); a rule must not miss a case for that.
fn contains(values: &[String], value: &str) -> bool {
    values.iter().any(|accepted| accepted.eq_ignore_ascii_case(value))
}
