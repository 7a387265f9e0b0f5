//! One case through the whole policy: gate, guardrails, decision table and approval matrix, each of which can only make the
//! disposition stricter. What remains free after all of them, and only that, is automated.
//!
//! It refuses to stop at the first reason: a person sees everything that held the case.

use std::borrow::Cow;

use super::view::CaseView;
use super::{Disposition, Policy, PolicyInput, Reason, ReasonCode, TraceEntry, Verdict};
use crate::event::Facts;
use crate::risk::Risk;
use crate::taxonomy::{ActionDefinition, MANUAL_REVIEW};

/// Something that held a case.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    /// The check that speaks: `gate.…`, `guardrail.…`, `rule.ID` or `approval.ID`.
    pub(super) check: Cow<'static, str>,
    /// The freest disposition it allows.
    pub(super) floor: Disposition,
    pub(super) reason: Reason,
    pub(super) roles: Vec<String>,
}

impl Finding {
    pub(super) fn new(
        check: impl Into<Cow<'static, str>>,
        floor: Disposition,
        code: ReasonCode,
        detail: impl Into<String>,
    ) -> Self {
        Self { check: check.into(), floor, reason: Reason { code, detail: detail.into() }, roles: Vec::new() }
    }

    pub(super) fn with_role(mut self, role: Option<&String>) -> Self {
        self.roles.extend(role.cloned());
        self
    }
}

impl Policy {
    /// The disposition of one case with every reason that held it, strictest first.
    ///
    /// Deterministic, and monotone: a higher order value, revenue or SLA band, or a lower acceptance, never gives a freer
    /// disposition. The classification cannot free what facts forbid, because facts are judged without it.
    pub fn evaluate(&self, input: &PolicyInput<'_>) -> Verdict {
        self.evaluate_with(self.automation_enabled, input)
    }

    /// As [`Policy::evaluate`], with the automation switch as given.
    pub(super) fn evaluate_with(&self, automation_enabled: bool, input: &PolicyInput<'_>) -> Verdict {
        let mut findings = Vec::new();
        if !automation_enabled {
            let detail = "automation is switched off";
            findings.push(Finding::new("automation", Disposition::Propose, ReasonCode::AutomationDisabled, detail));
        }
        let gate = self.gate.judge(input.classification, input.thresholds, &mut findings);
        self.guardrails.judge(&self.vocabulary, &self.type_codes, input, &mut findings);
        let rule = self.look_up_rule(input, &mut findings);
        if let Some(action) = input.action.filter(|action| action.code != MANUAL_REVIEW)
            && let Some((row, role)) = self.approval(action, input.facts, input.risk)
        {
            let detail = format!("the approval matrix asks for an approval of `{}`", action.code);
            let check = format!("approval.{row}");
            let finding = Finding::new(check, Disposition::Propose, ReasonCode::ApprovalRequired, detail);
            findings.push(finding.with_role(Some(&role.to_owned())));
        }
        let queue = input.classification.and_then(|classification| classification.owner.clone());
        let queue = queue.filter(|owner| self.roles.contains(owner)).unwrap_or_else(|| self.default_role.clone());
        conclude(findings, rule, gate, queue)
    }

    /// The role that must approve an action, where one must: that of the first row of the approval matrix that hits, or of an
    /// earlier one that might hit if a missing fact were known.
    pub fn approver_role(&self, action: &ActionDefinition, facts: &Facts, risk: Option<&Risk>) -> Option<String> {
        self.approval(action, facts, risk).map(|(_, role)| role.to_owned())
    }

    fn approval(&self, action: &ActionDefinition, facts: &Facts, risk: Option<&Risk>) -> Option<(&str, &str)> {
        let view = CaseView::of_action(&self.vocabulary, Some(action), facts, risk);
        let mut candidates = self.approvals.candidates(&view);
        candidates.find_map(|candidate| Some((candidate.row.id.as_str(), candidate.row.effect.approver_role.as_deref()?)))
    }

    /// The rule that hits sets the freest disposition. A rule before it that might hit if a missing fact were known counts too, but
    /// it holds for review at most: urgency is claimed from facts that are stated.
    fn look_up_rule(&self, input: &PolicyInput<'_>, findings: &mut Vec<Finding>) -> String {
        let view = CaseView::new(&self.vocabulary, input);
        let mut strictest = None::<(Disposition, &str)>;
        for candidate in self.table.candidates(&view) {
            let effect = &candidate.row.effect;
            let floor = if candidate.certain { effect.disposition } else { effect.disposition.min(Disposition::Review) };
            if strictest.is_none_or(|(strictest, _)| floor > strictest)
                || (candidate.certain && strictest.is_some_and(|(strictest, _)| floor == strictest))
            {
                strictest = Some((floor, &candidate.row.id));
            }
            if floor > Disposition::AutoResolve {
                let check = format!("rule.{}", candidate.row.id);
                let detail = if candidate.certain {
                    effect.detail.clone()
                } else {
                    format!("{}; a fact that this rule asks for is missing", effect.detail)
                };
                let mut finding = Finding::new(check, floor, effect.reason, detail);
                finding.roles.clone_from(&effect.approver_roles);
                findings.push(finding);
            }
        }
        let (_, rule) = strictest.expect("the last row of a compiled table catches everything");
        rule.to_owned()
    }
}

fn conclude(mut findings: Vec<Finding>, rule: String, gate: super::Gate, queue: String) -> Verdict {
    // Stable: among equally strict findings the order of the checks stays.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.floor));
    let disposition = findings.first().map_or(Disposition::AutoResolve, |strictest| strictest.floor);
    let mut approvers: Vec<String> = Vec::new();
    for role in findings.iter().flat_map(|finding| &finding.roles) {
        if !approvers.contains(role) {
            approvers.push(role.clone());
        }
    }
    if approvers.is_empty() && disposition > Disposition::AutoResolve {
        approvers.push(queue.clone());
    }
    let trace = findings
        .iter()
        .map(|finding| TraceEntry { check: finding.check.clone().into_owned(), code: finding.reason.code, floor: finding.floor })
        .collect();
    let mut reasons: Vec<Reason> = findings.into_iter().map(|finding| finding.reason).collect();
    if reasons.is_empty() {
        let detail = "every check passed".to_owned();
        reasons.push(Reason { code: ReasonCode::WithinPolicy, detail });
    }
    Verdict { disposition, rule, gate, reasons, approvers, queue, trace }
}
