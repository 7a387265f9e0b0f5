//! From the text of a policy file to a [`Policy`] that cannot be wrong in the ways that can be checked.
//!
//! Every name is compared with the taxonomy and the policy's own vocabulary, every number with its range, every table compiled.
//! It refuses unknown fields, unknown names and anything a guardrail or a matrix row would silently let pass.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cases::Case;
use super::gate::GateSettings;
use super::guardrails::Guardrails;
use super::table::{Condition, DecisionTable, Row};
use super::view::{Dimension, Money, Vocabulary, band_code};
use super::{Disposition, Policy, PolicyError, ReasonCode};
use crate::risk::Band;
use crate::taxonomy::{Taxonomy, UNRECOGNIZED};

/// What a rule of the decision table does.
#[derive(Debug)]
pub(super) struct RuleEffect {
    /// The freest disposition.
    pub(super) disposition: Disposition,
    pub(super) approver_roles: Vec<String>,
    pub(super) reason: ReasonCode,
    pub(super) detail: String,
}

/// What a row of the approval matrix does.
#[derive(Debug)]
pub(super) struct ApprovalEffect {
    /// `None` where no approval is needed.
    pub(super) approver_role: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    version: String,
    currency: String,
    default_role: String,
    vocabulary: VocabularyFile,
    #[serde(default)]
    exchange_rates: BTreeMap<String, f64>,
    value_band: Vec<ValueBandFile>,
    gate: GateSettings,
    guardrails: Guardrails,
    rule: Vec<RuleFile>,
    approval: Vec<ApprovalFile>,
    #[serde(default)]
    case: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VocabularyFile {
    roles: Vec<String>,
    sla_tiers: Vec<String>,
    priorities: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueBandFile {
    name: String,
    #[serde(default)]
    below: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    id: String,
    #[serde(default)]
    when: ConditionFile,
    disposition: Disposition,
    #[serde(default)]
    approver_roles: Vec<String>,
    detail: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApprovalFile {
    id: String,
    #[serde(default)]
    when: ConditionFile,
    /// A role, or `none`: leaving it out must not free anything.
    approver_role: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConditionFile {
    types: Option<Vec<String>>,
    declared_types: Option<Vec<String>>,
    actions: Option<Vec<String>>,
    tenants: Option<Vec<String>>,
    business_units: Option<Vec<String>>,
    sites: Option<Vec<String>>,
    sla_tiers: Option<Vec<String>>,
    priorities: Option<Vec<String>>,
    value_bands: Option<Vec<String>>,
    sla_risk: Option<Vec<Band>>,
    reversible: Option<bool>,
    touches: Option<Vec<TouchFile>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TouchFile {
    Nothing,
    Money,
    Credit,
}

/// What the cells of a file may name.
struct Names<'a> {
    taxonomy: &'a Taxonomy,
    vocabulary: &'a Vocabulary,
    roles: &'a [String],
}

impl Policy {
    /// Reads and checks a policy file against a taxonomy.
    ///
    /// # Errors
    /// The first of: not TOML or unknown fields, unknown names, numbers out of range, a guardrail that holds nothing, a table with
    /// duplicate ids, no catch-all, unreachable rows or rows that free a case as its value or risk rises, a catch-all or a matrix
    /// row that is too free.
    pub fn from_toml(text: &str, taxonomy: &Taxonomy) -> Result<Self, PolicyError> {
        let file: PolicyFile = toml::from_str(text)?;
        let roles = roles(&file.vocabulary.roles, taxonomy);
        let vocabulary = vocabulary(file.vocabulary, file.value_band, file.currency, file.exchange_rates)?;
        let names = Names { taxonomy, vocabulary: &vocabulary, roles: &roles };
        if file.version.trim().is_empty() {
            return Err(PolicyError::NoVersion);
        }
        names.role(&file.default_role, "default_role")?;
        file.gate.check()?;
        file.guardrails.check(&vocabulary)?;
        for role in file.guardrails.roles() {
            names.role(role, "guardrails")?;
        }
        let table = compile_table(file.rule, &names)?;
        let approvals = compile_approvals(file.approval, &names)?;
        for (case_idx, case) in file.case.iter().enumerate() {
            if file.case[..case_idx].iter().any(|earlier| earlier.name == case.name) {
                return Err(PolicyError::DuplicateId { table: "case", id: case.name.clone() });
            }
            case.check(taxonomy)?;
        }
        let type_codes = taxonomy.types.iter().map(|definition| definition.code.clone()).collect();
        Ok(Self {
            version: file.version,
            automation_enabled: true,
            default_role: file.default_role,
            roles,
            type_codes,
            vocabulary,
            gate: file.gate,
            guardrails: file.guardrails,
            table,
            approvals,
            cases: file.case,
        })
    }
}

/// # Errors
/// Where `value` does not lie between 0 and 1.
pub(super) fn share(field: &str, value: f64) -> Result<(), PolicyError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(PolicyError::BadNumber { field: field.to_owned(), expected: "a number between 0 and 1" })
}

/// # Errors
/// Where `value` is negative or not finite.
pub(super) fn not_negative(field: &str, value: f64) -> Result<(), PolicyError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(PolicyError::BadNumber { field: field.to_owned(), expected: "a finite number that is not negative" })
}

/// # Errors
/// The first of `used` that is not among `words`.
pub(super) fn known(kind: &'static str, used: &[String], words: &[String], at: &str) -> Result<(), PolicyError> {
    match used.iter().find(|name| !words.contains(name)) {
        Some(name) => Err(PolicyError::UnknownName { kind, name: name.clone(), at: at.to_owned() }),
        None => Ok(()),
    }
}

fn roles(own: &[String], taxonomy: &Taxonomy) -> Vec<String> {
    taxonomy.owners.iter().map(|owner| &owner.code).chain(own).cloned().collect()
}

fn vocabulary(
    file: VocabularyFile,
    bands: Vec<ValueBandFile>,
    currency: String,
    exchange_rates: BTreeMap<String, f64>,
) -> Result<Vocabulary, PolicyError> {
    for code in exchange_rates.keys().chain([&currency]) {
        if code.len() != 3 || !code.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(PolicyError::UnknownName { kind: "currency", name: code.clone(), at: "exchange_rates".to_owned() });
        }
    }
    if let Some((code, _)) = exchange_rates.iter().find(|(_, rate)| !(rate.is_finite() && **rate > 0.0)) {
        return Err(PolicyError::BadNumber { field: format!("exchange_rates.{code}"), expected: "a finite number over 0" });
    }
    let upper_bounds: Vec<f64> = bands.iter().filter_map(|band| band.below).collect();
    let is_rising = upper_bounds.windows(2).all(|pair| pair[0] < pair[1]);
    let only_last_is_open = bands.len() == upper_bounds.len() + 1 && bands.last().is_some_and(|last| last.below.is_none());
    if !is_rising || !only_last_is_open || !upper_bounds.iter().all(|bound| bound.is_finite() && *bound > 0.0) {
        return Err(PolicyError::BadNumber {
            field: "value_band.below".to_owned(),
            expected: "a rising row of bounds over 0, and none in the last band",
        });
    }
    let value_bands: Vec<String> = bands.into_iter().map(|band| band.name).collect();
    if let Some((_, name)) = value_bands.iter().enumerate().find(|(band_idx, name)| value_bands[..*band_idx].contains(name)) {
        return Err(PolicyError::DuplicateId { table: "value_band", id: name.clone() });
    }
    Ok(Vocabulary {
        sla_tiers: file.sla_tiers,
        priorities: file.priorities,
        value_bands,
        upper_bounds,
        money: Money { currency, exchange_rates },
    })
}

fn compile_table(rules: Vec<RuleFile>, names: &Names<'_>) -> Result<DecisionTable<RuleEffect>, PolicyError> {
    let mut rows = Vec::with_capacity(rules.len());
    for rule in rules {
        let condition = names.condition(rule.when, &rule.id)?;
        for role in &rule.approver_roles {
            names.role(role, &rule.id)?;
        }
        if condition.is_catch_all() && rule.disposition == Disposition::AutoResolve {
            return Err(PolicyError::FreeCatchAll { table: "rule", id: rule.id });
        }
        let effect = RuleEffect {
            disposition: rule.disposition,
            approver_roles: rule.approver_roles,
            reason: ReasonCode::PolicyRule,
            detail: rule.detail,
        };
        rows.push(Row { id: rule.id, condition, effect });
    }
    DecisionTable::compile("rule", rows, &names.vocabulary.value_bands, |effect| effect.disposition as u8)
}

fn compile_approvals(approvals: Vec<ApprovalFile>, names: &Names<'_>) -> Result<DecisionTable<ApprovalEffect>, PolicyError> {
    let mut rows = Vec::with_capacity(approvals.len());
    for approval in approvals {
        let condition = names.condition(approval.when, &approval.id)?;
        if condition.cell(Dimension::Type).is_some() || condition.cell(Dimension::DeclaredType).is_some() {
            return Err(PolicyError::TypeInApproval { id: approval.id });
        }
        let approver_role = (approval.approver_role != "none").then_some(approval.approver_role);
        match &approver_role {
            Some(role) => names.role(role, &approval.id)?,
            None if condition.is_catch_all() => return Err(PolicyError::FreeCatchAll { table: "approval", id: approval.id }),
            None if !condition.is_undoable_and_touches_nothing() => return Err(PolicyError::FreeApproval { id: approval.id }),
            None => {}
        }
        rows.push(Row { id: approval.id, condition, effect: ApprovalEffect { approver_role } });
    }
    DecisionTable::compile("approval", rows, &names.vocabulary.value_bands, |effect| u8::from(effect.approver_role.is_some()))
}

impl Names<'_> {
    fn role(&self, role: &str, at: &str) -> Result<(), PolicyError> {
        if self.roles.iter().any(|known| known == role) {
            return Ok(());
        }
        Err(PolicyError::UnknownName { kind: "role", name: role.to_owned(), at: at.to_owned() })
    }

    fn condition(&self, file: ConditionFile, at: &str) -> Result<Condition, PolicyError> {
        let codes = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let types = codes(self.taxonomy.types.iter().map(|definition| definition.code.as_str()).chain([UNRECOGNIZED]).collect());
        let actions = codes(self.taxonomy.actions.iter().map(|definition| definition.code.as_str()).collect());
        let sla_risk = file.sla_risk.map(|bands| codes(bands.into_iter().map(band_code).collect()));
        let reversible = file.reversible.map(|reversible| vec![reversible.to_string()]);
        let touches = file.touches.map(|touches| codes(touches.into_iter().map(TouchFile::code).collect()));
        let closed = [
            (Dimension::Type, "type", file.types, Some(types.clone())),
            (Dimension::DeclaredType, "type", file.declared_types, Some(types)),
            (Dimension::Action, "action", file.actions, Some(actions)),
            (Dimension::Tenant, "tenant", file.tenants, None),
            (Dimension::BusinessUnit, "business unit", file.business_units, None),
            (Dimension::Site, "site", file.sites, None),
            (Dimension::SlaTier, "SLA tier", file.sla_tiers, Some(self.vocabulary.sla_tiers.clone())),
            (Dimension::Priority, "priority", file.priorities, Some(self.vocabulary.priorities.clone())),
            (Dimension::ValueBand, "value band", file.value_bands, Some(self.vocabulary.value_bands.clone())),
            (Dimension::SlaRisk, "risk band", sla_risk, None),
            (Dimension::Reversible, "reversibility", reversible, None),
            (Dimension::Touches, "touch", touches, None),
        ];
        let mut condition = Condition::default();
        for (dimension, kind, cell, words) in closed {
            let Some(cell) = cell else { continue };
            if cell.is_empty() {
                return Err(PolicyError::EmptyCell { kind, at: at.to_owned() });
            }
            if let Some(words) = words {
                known(kind, &cell, &words, at)?;
            }
            condition.cells[dimension as usize] = Some(cell);
        }
        Ok(condition)
    }
}

impl Condition {
    fn is_undoable_and_touches_nothing(&self) -> bool {
        let only = |dimension, value: &str| self.cell(dimension).is_some_and(|cell| cell.iter().all(|accepted| accepted == value));
        only(Dimension::Reversible, "true") && only(Dimension::Touches, "nothing")
    }
}

impl TouchFile {
    fn code(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Money => "money",
            Self::Credit => "credit",
        }
    }
}
