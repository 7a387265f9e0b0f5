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
    /// The pair is harmless where, at the higher level, a row before `freed` certainly takes every case that `freed` does (that row is
    /// then compared with `held` itself) or, being as strict as `held`, may take every case that both could meet; or where, at the
    /// lower level, a row before `held` certainly takes every case that `freed` does. All of it holds with facts missing too, so the
    /// check covers what the candidates of a look-up are, not only what hits.
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
                            let as_strict = strictness(&between.effect) >= strictness(&held.effect);
                            between.condition.accepts(dimension, high)
                                && (between.condition.subsumes_but_for(&freed.condition, dimension)
                                    || (as_strict && between.condition.covers_both(&held.condition, &freed.condition, dimension)))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;

    use super::*;

    const BANDS: [&str; 3] = ["small", "medium", "large"];
    const TYPES: [&str; 2] = ["shortfall", "delay"];
    const SITES: [&str; 3] = ["north", "south", "west"];
    const TOUCHES: [&str; 3] = ["nothing", "money", "credit"];
    /// What a merely possible row is held to, as review is for the rules of a policy.
    const POSSIBLE_CAP: u8 = 2;

    fn row(id: &str, cells: &[(Dimension, &[&str])], effect: u8) -> Row<u8> {
        let mut condition = Condition::default();
        for (dimension, values) in cells {
            condition.cells[*dimension as usize] = Some(values.iter().map(|value| (*value).to_owned()).collect());
        }
        Row { id: id.to_owned(), condition, effect }
    }

    fn compile(rows: Vec<Row<u8>>) -> Result<DecisionTable<u8>, PolicyError> {
        DecisionTable::compile("rule", rows, &BANDS.map(str::to_owned), |effect| *effect)
    }

    fn strictest(table: &DecisionTable<u8>, view: &CaseView<'_>) -> u8 {
        let effects = table.candidates(view).map(|candidate| {
            let effect = candidate.row.effect;
            if candidate.certain { effect } else { effect.min(POSSIBLE_CAP) }
        });
        effects.max().unwrap()
    }

    #[test]
    fn a_missing_fact_counts_for_the_stricter_row() {
        let table = compile(vec![
            row("north", &[(Dimension::Site, &["north"])], 2),
            row("delay", &[(Dimension::Type, &["delay"])], 0),
            row("rest", &[], 1),
        ])
        .unwrap();
        let check = |site, r#type, expected| {
            let view = CaseView::of_values([(Dimension::Site, site), (Dimension::Type, r#type)]);
            assert_eq!(strictest(&table, &view), expected, "{site:?} {type:?}");
        };
        check(Value::One("north"), Value::One("delay"), 2);
        check(Value::One("south"), Value::One("delay"), 0);
        check(Value::One("south"), Value::One("shortfall"), 1);
        check(Value::Missing, Value::One("delay"), 2);
        check(Value::One("south"), Value::Missing, 1);
        check(Value::One("SOUTH"), Value::One("Delay"), 0);
    }

    #[test]
    fn a_row_behind_a_wider_one_is_unreachable() {
        let wide = || row("wide", &[(Dimension::Site, &["north", "south"])], 1);
        let narrow = || row("narrow", &[(Dimension::Site, &["south"]), (Dimension::Type, &["delay"])], 0);
        let rest = || row("rest", &[], 1);
        assert!(matches!(compile(vec![wide(), narrow(), rest()]), Err(PolicyError::Unreachable { id, .. }) if id == "narrow"));
        assert!(compile(vec![narrow(), wide(), rest()]).is_ok());
        assert!(matches!(compile(vec![rest(), wide()]), Err(PolicyError::NoCatchAll { .. })));
        assert!(matches!(compile(vec![wide(), wide(), rest()]), Err(PolicyError::DuplicateId { .. })));
        assert!(matches!(compile(vec![]), Err(PolicyError::NoCatchAll { .. })));
    }

    #[test]
    fn a_table_that_frees_what_is_worth_more_is_refused() {
        let check = |rows, refused: bool| match compile(rows) {
            Err(PolicyError::NotMonotone { .. }) => assert!(refused),
            Err(error) => panic!("{error}"),
            Ok(_) => assert!(!refused),
        };
        let band = |id, bands: &[&str], effect| row(id, &[(Dimension::ValueBand, bands)], effect);
        check(vec![band("large", &["large"], 0), row("rest", &[], 1)], true);
        check(vec![band("small", &["small"], 0), row("rest", &[], 1)], false);
        check(vec![band("medium", &["medium"], 2), row("rest", &[], 1)], true);
        check(vec![band("medium", &["medium"], 2), band("large", &["large"], 2), row("rest", &[], 1)], false);
        let north = row("north", &[(Dimension::Site, &["north"]), (Dimension::ValueBand, &["small"])], 2);
        let south = row("south", &[(Dimension::Site, &["south"]), (Dimension::ValueBand, &["large"])], 0);
        check(vec![north, south, row("rest", &[], 2)], true);
    }

    #[test]
    fn a_row_that_only_may_take_a_case_excuses_no_other() {
        // Without knowing what the action touches, `any_credit` may hit and holds; `large` hits for certain and ends the look-up.
        let free_credit = row("free_credit", &[(Dimension::Touches, &["credit"]), (Dimension::ValueBand, &BANDS)], 0);
        let large = row("large", &[(Dimension::ValueBand, &["large"])], 1);
        let any_credit = row("any_credit", &[(Dimension::Touches, &["credit"])], 2);
        assert!(matches!(compile(vec![free_credit, large, any_credit, row("rest", &[], 0)]), Err(PolicyError::NotMonotone { .. })));
    }

    fn cell(values: &'static [&'static str]) -> impl Strategy<Value = Option<Vec<String>>> {
        let some = proptest::sample::subsequence(values.to_vec(), 1..=values.len());
        proptest::option::of(some.prop_map(|values| values.into_iter().map(str::to_owned).collect()))
    }

    fn table() -> impl Strategy<Value = Option<DecisionTable<u8>>> {
        let condition = (cell(&TYPES), cell(&SITES), cell(&TOUCHES), cell(&BANDS));
        let rows = proptest::collection::vec((condition, 0_u8..4), 0..5);
        (rows, 0_u8..4).prop_map(|(rows, rest)| {
            let mut compiled = Vec::new();
            for (row_idx, ((r#type, site, touches, band), effect)) in rows.into_iter().enumerate() {
                let mut condition = Condition::default();
                condition.cells[Dimension::Type as usize] = r#type;
                condition.cells[Dimension::Site as usize] = site;
                condition.cells[Dimension::Touches as usize] = touches;
                condition.cells[Dimension::ValueBand as usize] = band;
                compiled.push(Row { id: row_idx.to_string(), condition, effect });
            }
            compiled.push(row("rest", &[], rest));
            compile(compiled).ok()
        })
    }

    #[test]
    fn the_random_tables_of_the_property_are_not_all_refused_or_trivial() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let tables = (0..2_000).filter_map(|_| table().new_tree(&mut runner).unwrap().current());
        let varied = |table: &DecisionTable<u8>| {
            table.rows.iter().any(|row| row.condition.cell(Dimension::ValueBand).is_some())
                && table.rows.iter().any(|row| row.effect != table.rows[0].effect)
        };
        let n_varied = tables.filter(varied).count();
        assert!(n_varied >= 100, "{n_varied}");
    }

    fn value(values: &'static [&'static str]) -> impl Strategy<Value = Value<'static>> {
        prop_oneof![Just(Value::Missing), proptest::sample::select(values).prop_map(Value::One)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn a_compiled_table_never_frees_a_case_that_is_worth_more(
            table in table(),
            r#type in value(&TYPES),
            site in value(&SITES),
            touches in prop_oneof![value(&TOUCHES), Just(Value::Two("money", "credit"))],
            low_idx in 0_usize..2,
        ) {
            let Some(table) = table else { return Ok(()) };
            let at = |band| {
                let values = [(Dimension::Type, r#type), (Dimension::Site, site), (Dimension::Touches, touches)];
                let view = CaseView::of_values(values.into_iter().chain([(Dimension::ValueBand, Value::One(band))]));
                strictest(&table, &view)
            };
            prop_assert!(at(BANDS[low_idx]) <= at(BANDS[low_idx + 1]));
        }
    }
}
