//! Whether a machine may do it alone: guardrails, the approval matrix and the gate.
//!
//! Pure, compiled once, every rule traced. It refuses the clock, tokio and the narrative: its input has no field for text.

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
    /// Most restrictive first.
    pub reasons: Vec<Reason>,
    /// Roles that may decide or approve.
    pub approvers: Vec<String>,
}

impl Verdict {
    /// Takes automation away for `reason`.
    pub fn require_person(&mut self, _reason: Reason) {
        todo!()
    }
}

/// The acceptance thresholds of a bundle, per type.
#[derive(Debug)]
pub struct Thresholds {}

/// A compiled policy.
#[derive(Debug)]
pub struct Policy {}

impl Policy {
    pub fn version(&self) -> &str {
        todo!()
    }

    pub fn approver_role(&self, _action: &ActionDefinition, _facts: &Facts, _risk: Option<&Risk>) -> Option<String> {
        todo!()
    }

    pub fn evaluate(&self, _input: &PolicyInput<'_>) -> Verdict {
        todo!()
    }
}
