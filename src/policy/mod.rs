//! Whether a machine may do it alone: guardrails, the approval matrix and the gate.
//!
//! A policy is a versioned file ([`Policy::from_toml`]): settings of the gate, guardrails, a decision table and an approval matrix,
//! and the cases that its author expects it to decide. [`Policy::evaluate`] starts from full freedom and lets every part make the
//! disposition stricter; none can make it freer. In reading order: `evaluate`, `gate`, `guardrails`, `table` (with `view`, what its
//! cells are compared with), `load` and `cases`.
//!
//! Pure, compiled once, every rule traced. It refuses the clock, tokio and the narrative: its input has no field for text.

mod cases;
mod evaluate;
mod gate;
mod guardrails;
mod load;
mod table;
mod view;

pub use cases::{CaseFailure, CheckReport, check};
pub use gate::{ThresholdRow, Thresholds};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::classifier::Classification;
use crate::event::Facts;
use crate::risk::Risk;
use crate::taxonomy::ActionDefinition;

/// What policy says about a case, from the freest to the strictest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// No person is needed.
    AutoResolve,
    /// One prepared action waits for a named approver role.
    Propose,
    /// A person decides among ranked options.
    Review,
    /// As review, at once, to the role policy names.
    Escalate,
}

/// Why a disposition is not freer than it is, or what else a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    pub code: ReasonCode,
    /// One sentence for a person; never customer data or narrative text.
    pub detail: String,
}

/// The closed set of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// The text fits no type of the taxonomy.
    TypeUnrecognized,
    /// The text is unlike what the classifier was trained on.
    NovelText,
    /// The text speaks of a second type of problem.
    SecondProblem,
    /// The acceptance score is under the threshold.
    BelowThreshold,
    /// No threshold with a guarantee exists for this type.
    InsufficientEvidence,
    /// Part of the text did not fit the encoder.
    TextTruncated,
    /// The classifier gave no answer.
    ClassifierUnavailable,
    /// The risk models gave no answer.
    RiskUnavailable,
    /// Facts that policy needs are missing.
    MissingFacts,
    /// No action but manual review is feasible.
    NoFeasibleAction,
    /// The declared type of the source system and the classified one differ.
    DeclaredTypeDiffers,
    /// Regulated goods.
    Regulated,
    /// Export-controlled goods.
    ExportControlled,
    /// The customer's orders need authorisation.
    RequiresAuthorization,
    /// The credit limit is exceeded or receivables are overdue.
    Credit,
    /// The order is worth more than automation may touch.
    OrderValueLimit,
    /// More money is at risk than automation may touch.
    RevenueLimit,
    /// The promise to the customer is likely to break.
    HighSlaRisk,
    /// The action cannot be undone.
    Irreversible,
    /// The action moves money or grants credit.
    TouchesMoneyOrCredit,
    /// The action must be approved under the approval matrix.
    ApprovalRequired,
    /// Automation is switched off.
    AutomationDisabled,
    /// The decision could not be recorded.
    AuditUnavailable,
    /// The customer's tier or the order's priority asks for attention at once.
    Urgent,
    /// A rule of the policy table named this disposition.
    PolicyRule,
    /// Every check passed.
    WithinPolicy,
}

/// The comparison that stood between the case and automation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Gate {
    /// The acceptance score of the classification; absent where there was none.
    pub score: Option<f64>,
    /// The threshold it had to reach; absent where the type cannot be automated.
    pub threshold: Option<f64>,
    /// The promise behind the threshold; `null` where there is none.
    pub guarantee: Option<Guarantee>,
}

/// With `confidence`, at most `max_error` of the cases over the threshold are wrong: `errors` of `n` held-out ones were.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Guarantee {
    pub max_error: f64,
    pub confidence: f64,
    pub n: u64,
    pub errors: u64,
}

/// Everything policy may look at. There is no narrative in it, by construction.
#[derive(Debug, Clone, Copy)]
pub struct PolicyInput<'a> {
    pub facts: &'a Facts,
    pub classification: Option<&'a Classification>,
    pub risk: Option<&'a Risk>,
    /// The best feasible action; `None` where the taxonomy does not know it.
    pub action: Option<&'a ActionDefinition>,
    pub thresholds: &'a Thresholds,
}

/// What policy says, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub disposition: Disposition,
    /// The rule of the table that decided.
    pub rule: String,
    pub gate: Gate,
    /// Most restrictive first; never empty.
    pub reasons: Vec<Reason>,
    /// Roles that may decide or approve, those of the strictest reason first; empty only where no person is needed.
    pub approvers: Vec<String>,
    /// The queue of the case, for when no reason names a role.
    pub queue: String,
    /// Every check that held the case, in the order of the reasons.
    pub trace: Vec<TraceEntry>,
}

/// One check that held a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEntry {
    /// `gate.…`, `guardrail.…`, `rule.ID`, `approval.ID`, or the name of a later check.
    pub check: String,
    pub code: ReasonCode,
    /// The freest disposition the check allows.
    pub floor: Disposition,
}

impl Verdict {
    /// Takes automation away for `reason`: a person decides.
    pub fn require_person(&mut self, reason: Reason) {
        self.reasons.retain(|reason| reason.code != ReasonCode::WithinPolicy);
        let entry = TraceEntry { check: "pipeline".to_owned(), code: reason.code, floor: Disposition::Review };
        // Stays behind what is stricter still, so that the order of the reasons holds.
        let position = self.trace.iter().take_while(|entry| entry.floor > Disposition::Review).count();
        self.trace.insert(position, entry);
        self.reasons.insert(position, reason);
        self.disposition = self.disposition.max(Disposition::Review);
        if self.approvers.is_empty() {
            self.approvers.push(self.queue.clone());
        }
    }
}

/// Section `policy` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// The policy file; the embedded [`DEFAULT_POLICY`] where none is named.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Whether a machine may act alone at all.
    pub automation_enabled: bool,
}

/// The policy that holds where no other is named, with its cases. It is also the documentation of the format.
pub const DEFAULT_POLICY: &str = include_str!("../../config/policy/default.toml");

/// A compiled policy.
#[derive(Debug)]
pub struct Policy {
    version: String,
    automation_enabled: bool,
    /// The queue of a case that has no owner.
    default_role: String,
    /// Owners of the taxonomy and the policy's own roles.
    roles: Vec<String>,
    type_codes: Vec<String>,
    vocabulary: view::Vocabulary,
    gate: gate::GateSettings,
    guardrails: guardrails::Guardrails,
    table: table::DecisionTable<load::RuleEffect>,
    approvals: table::DecisionTable<load::ApprovalEffect>,
    cases: Vec<cases::Case>,
}

impl Policy {
    /// The version the file states; recorded with every decision.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The same policy with automation switched on or off.
    #[must_use]
    pub fn with_automation(mut self, enabled: bool) -> Self {
        self.automation_enabled = enabled;
        self
    }
}

/// Why a policy or a threshold file was refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("the file is not readable")]
    Parse(#[from] toml::de::Error),
    #[error("`version` is empty; decisions are recorded with it")]
    NoVersion,
    #[error("`{name}` is not a known {kind} (in `{at}`)")]
    UnknownName { kind: &'static str, name: String, at: String },
    #[error("`{field}` must be {expected}")]
    BadNumber { field: String, expected: &'static str },
    #[error("`{id}` is defined twice among the {table} rows")]
    DuplicateId { table: &'static str, id: String },
    #[error("the last {table} row must have no `when`, so that it catches every case")]
    NoCatchAll { table: &'static str },
    #[error("the catch-all {table} row `{id}` frees what nobody thought of; it must ask for a person")]
    FreeCatchAll { table: &'static str, id: String },
    #[error("{table} row `{id}` can never be reached: `{earlier}` before it takes every case")]
    Unreachable { table: &'static str, id: String, earlier: String },
    #[error(
        "a case that rises from `{low}` to `{high}` would move from {table} row `{held}` to the freer `{freed}`; \
         put a row as strict as `{held}` for `{high}` before it"
    )]
    NotMonotone { table: &'static str, held: String, freed: String, low: String, high: String },
    #[error("the cell for {kind} in `{at}` is empty and would never match; leave it out to match anything")]
    EmptyCell { kind: &'static str, at: String },
    #[error("guardrail `{guardrail}` has the disposition `auto_resolve` and would hold nothing")]
    HoldsNothing { guardrail: &'static str },
    #[error("approval row `{id}` names a type; an approval depends on the action and the facts alone")]
    TypeInApproval { id: String },
    #[error(
        "approval row `{id}` asks for no approval; its cells must be `reversible = true` and `touches = [\"nothing\"]` at least"
    )]
    FreeApproval { id: String },
    #[error("the threshold of `{type}` must be either a number or `insufficient_evidence = true`")]
    ContradictoryThreshold { r#type: String },
}
