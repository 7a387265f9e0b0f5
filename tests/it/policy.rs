//! The policy room: what the default policy says, what a policy file may not say, and what no case may ever do.

use sluice::policy::{self, DEFAULT_POLICY, Policy};
use sluice::taxonomy::Taxonomy;

fn taxonomy() -> Taxonomy {
    Taxonomy::from_toml(include_str!("../../models/bundles/default/taxonomy.toml")).unwrap()
}

#[test]
fn the_default_policy_decides_its_own_cases_as_it_says() {
    let report = policy::check(DEFAULT_POLICY, &taxonomy()).unwrap();
    assert_eq!(report.failures, []);
    assert!(report.n_cases >= 25, "{} cases", report.n_cases);
    let policy = Policy::from_toml(DEFAULT_POLICY, &taxonomy()).unwrap();
    assert_eq!(policy.version(), report.version);
}
