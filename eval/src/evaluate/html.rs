//! `report.html`: one file without scripts, fonts or links, so that it can be mailed and kept.

use std::fmt::Write;

use super::figures::Truths;
use super::{Evaluation, Prediction};
use crate::metrics::{ReliabilityBin, class_reports, reliability, risk_coverage_curve};

/// Most confident errors shown.
const N_ERRORS: usize = 40;

/// Side of a plot in user units.
const PLOT: f64 = 320.0;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b2430}\
    h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}table{border-collapse:collapse;font-size:.9rem}\
    th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #dde3ea}th:first-child,td:first-child,td.text{text-align:left}\
    td.text{max-width:34rem}.plots{display:flex;flex-wrap:wrap;gap:2rem}figure{margin:0}figcaption{font-size:.85rem;color:#566272}\
    svg text{font:11px system-ui,sans-serif;fill:#566272}";

/// The whole page.
pub fn render(evaluation: &Evaluation) -> String {
    let truths = Truths::of(&evaluation.predictions, &evaluation.types);
    let in_scope = truths.in_scope(&evaluation.predictions);
    let acceptance: Vec<f64> = evaluation.predictions.iter().map(|row| row.classification.acceptance).collect();
    let mut labels = evaluation.types.clone();
    labels.push(evaluation.oos_label.clone());
    let sections = [
        figures_table(evaluation),
        format!(
            "<h2>Plots</h2><div class=plots>{}{}</div>",
            reliability_plot(&reliability(&in_scope.right, &in_scope.scores)),
            risk_coverage_plot(&risk_coverage_curve(&truths.right, &acceptance))
        ),
        class_table(&truths, &labels),
        confusion_plot(&truths, &labels),
        errors_table(evaluation),
    ];
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Sluice evaluation</title><style>{STYLE}</style>\
         <h1>Sluice evaluation</h1><p>{} texts, {} of them fit no type.</p>{}</html>",
        evaluation.metrics.n,
        evaluation.metrics.n_out_of_scope,
        sections.concat()
    )
}

fn figures_table(evaluation: &Evaluation) -> String {
    let figures = serde_json::to_value(&evaluation.metrics).expect("metrics are numbers");
    let mut rows = String::new();
    for (name, figure) in figures.as_object().into_iter().flatten() {
        let shown = match figure.as_f64() {
            Some(figure) if figure.fract() != 0.0 => format!("{figure:.4}"),
            Some(figure) => format!("{figure}"),
            None => "not defined".to_owned(),
        };
        push(&mut rows, format_args!("<tr><td>{name}<td>{shown}"));
    }
    format!("<h2>Figures</h2><table>{rows}</table>")
}

fn class_table(truths: &Truths, labels: &[String]) -> String {
    let mut rows = String::new();
    for (label, report) in labels.iter().zip(class_reports(&truths.actual, &truths.named)) {
        push(
            &mut rows,
            format_args!(
                "<tr><td>{}<td>{}<td>{}<td>{:.3}<td>{:.3}<td>{:.3}",
                escape(label),
                report.support,
                report.predicted,
                report.precision,
                report.recall,
                report.f1
            ),
        );
    }
    format!("<h2>Types</h2><table><tr><th>type<th>texts<th>named<th>precision<th>recall<th>F1{rows}</table>")
}

fn confusion_plot(truths: &Truths, labels: &[String]) -> String {
    let n = labels.len();
    let mut counts = vec![0usize; n * n];
    for (&actual, &named) in truths.actual.iter().zip(&truths.named) {
        counts[actual * n + named] += 1;
    }
    let (cell, left, top) = (34.0, 190.0, 150.0);
    let side = cell * n as f64;
    let mut svg = String::new();
    for (row, label) in labels.iter().enumerate() {
        let total: usize = counts[row * n..][..n].iter().sum();
        let y = top + cell * row as f64;
        push(&mut svg, format_args!("<text x={} y={} text-anchor=end>{}</text>", left - 6.0, y + 21.0, escape(label)));
        let x = left + cell * row as f64 + 20.0;
        push(&mut svg, format_args!("<text transform='translate({x} {}) rotate(-50)'>{}</text>", top - 8.0, escape(label)));
        for column in 0..n {
            let count = counts[row * n + column];
            if count == 0 {
                continue;
            }
            let share = count as f64 / total as f64;
            let color = if row == column { "31,119,80" } else { "190,60,40" };
            let x = left + cell * column as f64;
            push(
                &mut svg,
                format_args!(
                    "<rect x={x} y={y} width={cell} height={cell} fill='rgba({color},{:.3})'><title>{} as {}: {count}</title></rect>\
                     <text x={} y={} text-anchor=middle>{count}</text>",
                    0.08 + 0.8 * share,
                    escape(label),
                    escape(&labels[column]),
                    x + cell / 2.0,
                    y + 21.0
                ),
            );
        }
    }
    format!(
        "<h2>Confusion</h2><figure><svg viewBox='0 0 {w} {h}' width={w} height={h} role=img>{svg}</svg>\
         <figcaption>Rows are labels, columns answers; the last of each is an abstention.</figcaption></figure>",
        w = left + side + 120.0,
        h = top + side + 10.0
    )
}

fn reliability_plot(bins: &[ReliabilityBin]) -> String {
    let mut marks = format!("<line x1=0 y1={PLOT} x2={PLOT} y2=0 stroke='#b8c2cf' stroke-dasharray='4 4'/>");
    let largest = bins.iter().map(|bin| bin.n).max().unwrap_or(0).max(1) as f64;
    for bin in bins.iter().filter(|bin| bin.n > 0) {
        let radius = 2.5 + 7.0 * (bin.n as f64 / largest).sqrt();
        let (x, y) = (PLOT * bin.confidence, PLOT * (1.0 - bin.accuracy));
        push(
            &mut marks,
            format_args!(
                "<circle cx={x:.1} cy={y:.1} r={radius:.1} fill='#2c6fbb'><title>{} texts, score {:.3}, right {:.3}</title></circle>",
                bin.n, bin.confidence, bin.accuracy
            ),
        );
    }
    plot(
        &marks,
        "score",
        "share right",
        1.0,
        "Reliability: in-scope texts by score; on the line, a score is what it says. Area grows with the texts.",
    )
}

fn risk_coverage_plot(curve: &[(f64, f64)]) -> String {
    let highest = curve.iter().map(|point| point.1).fold(0.05, f64::max);
    // A few hundred points are as many as a screen shows.
    let stride = curve.len().div_ceil(400).max(1);
    let points: Vec<String> = curve
        .iter()
        .step_by(stride)
        .map(|&(coverage, risk)| format!("{:.1},{:.1}", PLOT * coverage, PLOT * (1.0 - risk / highest)))
        .collect();
    let line = format!("<polyline points='{}' fill=none stroke='#2c6fbb' stroke-width=2 />", points.join(" "));
    plot(
        &line,
        "coverage",
        "error",
        highest,
        "Risk and coverage: error among all texts answered by falling acceptance; a text that fits no type counts as wrong.",
    )
}

/// Axes, marks and a caption.
fn plot(marks: &str, x_name: &str, y_name: &str, y_max: f64, caption: &str) -> String {
    let mut ticks = String::new();
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        push(&mut ticks, format_args!("<text x={:.1} y={} text-anchor=middle>{share:.2}</text>", PLOT * share, PLOT + 16.0));
        push(
            &mut ticks,
            format_args!("<text x=-6 y={:.1} text-anchor=end>{:.2}</text>", PLOT * (1.0 - share) + 4.0, y_max * share),
        );
    }
    format!(
        "<figure><svg viewBox='-60 -14 {w} {h}' width={w} height={h} role=img><rect width={PLOT} height={PLOT} fill=none stroke='#b8c2cf'/>\
         {ticks}{marks}<text x={m} y={b} text-anchor=middle>{x_name}</text>\
         <text transform='translate(-44 {m}) rotate(-90)' text-anchor=middle>{y_name}</text></svg><figcaption>{caption}</figcaption></figure>",
        w = PLOT + 84.0,
        h = PLOT + 54.0,
        m = PLOT / 2.0,
        b = PLOT + 34.0
    )
}

fn errors_table(evaluation: &Evaluation) -> String {
    let is_wrong = |row: &&Prediction| !row.classification.abstained && row.classification.r#type != row.label;
    let mut wrong: Vec<&Prediction> = evaluation.predictions.iter().filter(is_wrong).collect();
    wrong.sort_by(|a, b| b.classification.acceptance.total_cmp(&a.classification.acceptance));
    let mut rows = String::new();
    for row in wrong.iter().take(N_ERRORS) {
        push(
            &mut rows,
            format_args!(
                "<tr><td class=text>{}<td>{}<td>{}<td>{:.3}<td>{:.3}<td>{:.3}",
                escape(&row.text),
                escape(&row.label),
                escape(&row.classification.r#type),
                row.classification.score,
                row.classification.acceptance,
                row.classification.novelty
            ),
        );
    }
    format!(
        "<h2>Most confident errors</h2><p>{} of {} wrong answers, by falling acceptance.</p>\
         <table><tr><th>text<th>label<th>answer<th>score<th>acceptance<th>novelty{rows}</table>",
        wrong.len().min(N_ERRORS),
        wrong.len()
    )
}

fn push(target: &mut String, text: std::fmt::Arguments<'_>) {
    target.write_fmt(text).expect("a String takes every write");
}

/// Texts are other people's: nothing in them may become markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_become_markup() {
        assert_eq!(escape("<b a='x'>&\""), "&lt;b a=&#39;x&#39;&gt;&amp;&quot;");
    }
}
