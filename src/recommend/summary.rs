//! The reviewer's summary: one to five sentences that say what is known. Extractive and factual.
//!
//! Every number, name and time in it stands in the event or in the scores beside it; nothing is computed, so nothing can be
//! computed wrongly. It quotes the narrative rather than rephrasing it, and refuses to say what was not stated.

use std::fmt::Write;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Recommender;
use super::feasibility::{short_lines, usable_substitute};
use crate::classifier::Classification;
use crate::event::{Content, Customer, Order, OrderLine};
use crate::risk::{Band, Risk};

/// Longest quotation, in characters: about two lines on a screen.
const MAX_QUOTE_CHARS: usize = 240;
/// Short lines that are described; a person reads the rest in the event.
const MAX_LINES: usize = 3;
/// A sentence with fewer letters than this says nothing by itself (`Hi Tom,` or `pls help`).
const MIN_INFORMATIVE_CHARS: usize = 12;

impl Recommender {
    /// The reviewer's summary of one case, in sentences that end with a stop.
    pub fn summary(&self, content: &Content, classification: Option<&Classification>, risk: Option<&Risk>) -> String {
        let order = content.facts.order.as_ref();
        let customer = content.facts.customer.as_ref();
        let stake = [order_sentence(order), customer_clause(customer)].into_iter().flatten().collect::<Vec<_>>().join("; ");
        let sentences = [
            Some(self.type_sentence(classification)),
            quote(&content.narrative).map(|quote| format!("The text says: \"{quote}\"")),
            Some(stake).filter(|stake| !stake.is_empty()),
            lines_sentence(order.map_or(&[], |order| &order.lines)),
            risk.map(risk_sentence),
        ];
        let mut summary = String::new();
        for sentence in sentences.into_iter().flatten() {
            let space = if summary.is_empty() { "" } else { " " };
            let stop = if sentence.trim_end_matches('"').ends_with(['.', '!', '?', '…']) { "" } else { "." };
            let _ = write!(summary, "{space}{sentence}{stop}");
        }
        summary
    }

    fn type_sentence(&self, classification: Option<&Classification>) -> String {
        let Some(classification) = classification else {
            return "The text was not classified".to_owned();
        };
        let best = classification.candidates.first();
        if classification.abstained {
            return match best {
                Some(best) => {
                    format!("No known type fits the text; the nearest is {} ({:.2})", self.name(&best.r#type), best.score)
                }
                None => "No known type fits the text".to_owned(),
            };
        }
        format!("The text reads as {} ({:.2})", self.name(&classification.r#type), classification.score)
    }

    fn name<'a>(&'a self, code: &'a str) -> &'a str {
        self.types.iter().find(|model| model.code == code).map_or(code, |model| &model.name)
    }
}

fn order_sentence(order: Option<&Order>) -> Option<String> {
    let order = order?;
    let id = order.id.as_deref().map_or_else(|| "The order".to_owned(), |id| format!("Order {id}"));
    let value = order.value.map(|value| match &order.currency {
        Some(currency) => format!("is worth {value} {currency}"),
        None => format!("is worth {value}"),
    });
    let parts = [
        value,
        order.priority.as_ref().map(|priority| format!("has priority {priority}")),
        at("is promised to ship at", order.promised_ship_at),
        at("has the carrier's cut-off at", order.carrier_cutoff_at),
        at("is to be delivered by", order.requested_delivery_at),
        order.partial_allowed.map(|allowed| if allowed { "may ship in part" } else { "must ship complete" }.to_owned()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("{id} {}", parts.join(", ")))
}

fn customer_clause(customer: Option<&Customer>) -> Option<String> {
    let customer = customer?;
    let exposure = match (customer.credit_exposure, customer.credit_limit) {
        (Some(exposure), Some(limit)) => Some(format!("has used {exposure} of a credit limit of {limit}")),
        _ => None,
    };
    let parts = [
        customer.sla_tier.as_ref().map(|tier| format!("has the tier {tier}")),
        exposure,
        customer.days_overdue.filter(|days| *days > 0.0).map(|days| format!("is overdue by {days} days")),
        customer.requires_authorization.filter(|required| *required).map(|_| "needs an authorisation".to_owned()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let id = customer.id.as_deref().map_or_else(|| "the customer".to_owned(), |id| format!("customer {id}"));
    (!parts.is_empty()).then(|| format!("{id} {}", parts.join(", ")))
}

fn lines_sentence(lines: &[OrderLine]) -> Option<String> {
    let mut described: Vec<String> = short_lines(lines).take(MAX_LINES).filter_map(line_clause).collect();
    if short_lines(lines).nth(MAX_LINES).is_some() {
        described.push("further lines are short too".to_owned());
    }
    (!described.is_empty()).then(|| described.join("; "))
}

fn line_clause(line: &OrderLine) -> Option<String> {
    let (available, ordered) = (line.available?, line.ordered?);
    let mut clause = match line.line {
        Some(number) => format!("Line {number}"),
        None => "A line".to_owned(),
    };
    if let Some(sku) = &line.sku {
        let _ = write!(clause, " ({sku})");
    }
    let _ = write!(clause, " has {available} of {ordered} available");
    match usable_substitute(line) {
        Some(substitute) => {
            let _ = write!(clause, ", approved substitute {}", substitute.sku);
            if let Some(available) = substitute.available {
                let _ = write!(clause, " with {available}");
            }
        }
        None if !line.substitutes.is_empty() => clause.push_str(", no approved substitute known to cover it"),
        None => {}
    }
    if let Some(replenishment) = at("replenishment at", line.replenishment_at) {
        let confirmed = match line.replenishment_confirmed {
            Some(true) => " (confirmed)",
            Some(false) => " (not confirmed)",
            None => "",
        };
        let _ = write!(clause, ", {replenishment}{confirmed}");
    }
    Some(clause)
}

fn risk_sentence(risk: &Risk) -> String {
    let band = match risk.sla_breach.band {
        Band::Low => "low",
        Band::Medium => "medium",
        Band::High => "high",
    };
    let mut sentence = format!("The risk of missing the promise is {:.2} ({band})", risk.sla_breach.score);
    if let Some(revenue) = &risk.revenue_at_risk {
        let _ = write!(sentence, ", with {:.2}", revenue.expected);
        if let Some(currency) = &revenue.currency {
            let _ = write!(sentence, " {currency}");
        }
        sentence.push_str(" of revenue expected to be at risk");
    }
    sentence
}

fn at(label: &str, time: Option<OffsetDateTime>) -> Option<String> {
    // A year outside 0 to 9999 has no RFC 3339 form; the event is not quoted where it cannot be.
    let time = time?.format(&Rfc3339).ok()?;
    Some(format!("{label} {time}"))
}

/// The first informative sentences, whole where they fit and cut at a word where not; `None` where the text has no word.
fn quote(narrative: &str) -> Option<String> {
    let sentences: Vec<String> = sentences(narrative).collect();
    let first = sentences.iter().position(|sentence| is_informative(sentence)).unwrap_or(0);
    let mut quote = String::new();
    for sentence in &sentences[first.min(sentences.len())..] {
        let space = usize::from(!quote.is_empty());
        if !quote.is_empty() && quote.chars().count() + space + sentence.chars().count() > MAX_QUOTE_CHARS {
            break;
        }
        if space > 0 {
            quote.push(' ');
        }
        quote.push_str(sentence);
    }
    (!quote.is_empty()).then(|| cut(&quote))
}

/// Pieces that end with a sentence mark before a space, or with a line; white space is made single and control characters go.
fn sentences(narrative: &str) -> impl Iterator<Item = String> {
    narrative
        .lines()
        .flat_map(|line| line.split_inclusive(['.', '!', '?']).fold(Vec::<String>::new(), join_abbreviations))
        .filter_map(|piece| {
            let words: Vec<&str> = piece.split_whitespace().collect();
            let clean: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
            (!clean.is_empty()).then_some(clean)
        })
}

/// A mark that no space follows (`3.5`, `e.g.`, `www.x.com`) ends no sentence, so the next piece belongs to the same one.
fn join_abbreviations(mut pieces: Vec<String>, piece: &str) -> Vec<String> {
    match pieces.last_mut() {
        Some(last) if !piece.starts_with(char::is_whitespace) => last.push_str(piece),
        _ => pieces.push(piece.to_owned()),
    }
    pieces
}

fn is_informative(sentence: &str) -> bool {
    const GREETINGS: [&str; 8] = ["hi", "hello", "hey", "dear", "good morning", "good afternoon", "good evening", "team"];
    let lower = sentence.to_lowercase();
    let words = lower.split_whitespace().count();
    let greets = GREETINGS
        .iter()
        .any(|greeting| lower.strip_prefix(greeting).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric)) && words <= 5);
    !greets && sentence.chars().filter(|c| c.is_alphabetic()).count() >= MIN_INFORMATIVE_CHARS
}

fn cut(quote: &str) -> String {
    if quote.chars().count() <= MAX_QUOTE_CHARS {
        return quote.to_owned();
    }
    let head: String = quote.chars().take(MAX_QUOTE_CHARS).collect();
    // A cut inside a word could leave half a number; a text without a space is cut where it must be.
    let whole = head.rsplit_once(' ').map_or(head.as_str(), |(whole, _)| whole);
    format!("{whole}…")
}
