//! What did the experiments find? The results as one HTML page.

use crate::error::Result;
use crate::lab::experiment::Results;
use crate::lab::verdict::{Expect, Finding, Judged, Judgement, Verdict, claims};
use crate::view::{Bars, Html, Svg, escape};

/// Renders experiments as one page: the verdict on every claim and, for every prediction, its effects with confidence
/// intervals next to the smallest effect of interest. Everything is computed from the results and the rule stored with
/// them.
///
/// # Errors
/// If the results lack values that the rule reads, or a plot cannot be drawn.
pub fn report(results: &[Results]) -> Result<Html> {
    let judged = results.iter().map(Results::judge).collect::<Result<Vec<_>>>()?;
    let mut page = "<h1>Why do heads specialise? What the lab found</h1>\n".to_owned();
    page.push_str(&table_of_claims(&judged));
    for (results, judgement) in results.iter().zip(&judged) {
        page.push_str(&section(results, judgement)?);
    }
    Ok(styled(&page))
}

/// The table of claims alone: the verdict of each experiment, and over all experiments.
///
/// # Errors
/// If the results lack values that the rule reads.
pub fn overview(results: &[Results]) -> Result<Html> {
    Ok(styled(&table_of_claims(&results.iter().map(Results::judge).collect::<Result<Vec<_>>>()?)))
}

/// The style is scoped, so that it does not affect the rest of a notebook.
fn styled(page: &str) -> Html {
    Html::new(format!("<style>{STYLE}</style>\n<div class=\"headscope-lab\">\n{page}</div>\n"))
}

const STYLE: &str = ".headscope-lab{font-family:sans-serif;max-width:60em;margin:auto;line-height:1.4}\
.headscope-lab table{border-collapse:collapse;margin:1em 0}\
.headscope-lab td,.headscope-lab th{padding:.25em .7em;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}\
.headscope-lab .supported{color:#1a7f37}.headscope-lab .refuted{color:#b3261e}\
.headscope-lab .mixed{color:#8a5a00}.headscope-lab .inconclusive{color:#666}\
.headscope-lab svg{max-width:100%;height:auto}";

/// A verdict as coloured HTML.
fn coloured(verdict: Verdict) -> String {
    format!("<b class=\"{0}\">{0}</b>", verdict.name())
}

/// The verdict of each experiment on each claim, and over all experiments.
fn table_of_claims(judged: &[Judgement]) -> String {
    let all = claims(judged.iter().flat_map(|judgement| &judgement.predictions));
    let heads: String = judged.iter().map(|judgement| format!("<th>{}</th>", escape(&judgement.experiment))).collect();
    let mut rows = String::new();
    for (claim, verdict) in &all {
        let cell = |judgement: &Judgement| {
            format!("<td>{}</td>", judgement.claims.get(claim).map_or(String::new(), |verdict| coloured(*verdict)))
        };
        let cells: String = judged.iter().map(cell).collect();
        rows.push_str(&format!("<tr><th>{}</th>{cells}<td>{}</td></tr>\n", escape(claim), coloured(*verdict)));
    }
    format!("<table><tr><th>claim</th>{heads}<th>all</th></tr>\n{rows}</table>\n")
}

fn section(results: &Results, judgement: &Judgement) -> Result<String> {
    let experiment = &results.experiment;
    let mut page = format!("<h2>{}: {}</h2>\n", escape(&experiment.id), escape(&experiment.title));
    page.push_str(&format!("<p>{}</p>\n", escape(&experiment.question)));
    page.push_str(&format!(
        "<p>{} cells of {} runs each, seeds from {}. Rule: {}.</p>\n",
        experiment.cells.len(),
        experiment.runs,
        experiment.seed,
        escape(&experiment.rule.to_string())
    ));
    if !results.missing.is_empty() {
        page.push_str(&format!("<p>Missing cells: {}.</p>\n", escape(&results.missing.join(", "))));
    }
    for note in &judgement.notes {
        page.push_str(&format!("<p>Note: {}.</p>\n", escape(note)));
    }
    for judged in &judgement.predictions {
        page.push_str(&prediction(judged)?);
    }
    Ok(page)
}

fn prediction(judged: &Judged) -> Result<String> {
    let prediction = &judged.prediction;
    let told = prediction.to_string();
    let told = told.lines().nth(1).unwrap_or_default().trim();
    let mut page = format!(
        "<h3>{}: {}</h3>\n<p>{} Predicted: {}.</p>\n",
        escape(&prediction.claim),
        escape(&prediction.text),
        coloured(judged.verdict),
        escape(told)
    );
    page.push_str(effects(judged)?.as_str());
    let rows: String = judged.findings.iter().map(finding).collect();
    page.push_str(&format!(
        "<table><tr><th>case</th><th>verdict</th><th>effect</th><th>interval</th><th>p beyond</th><th>p opposite</th>\
         <th>p equivalent</th><th>p trend</th><th>seeds</th><th>did not learn</th></tr>\n{rows}</table>\n"
    ));
    Ok(page)
}

fn finding(finding: &Finding) -> String {
    let p = |p: Option<f64>| p.map_or("<td></td>".to_owned(), |p| format!("<td>{p:.3}</td>"));
    let (effect, interval) = finding.effect.map_or((String::new(), String::new()), |effect| {
        (format!("{:.3}", effect.estimate), format!("{:.3} to {:.3}", effect.low, effect.high))
    });
    format!(
        "<tr><td>{}</td><td>{}, {}</td><td>{effect}</td><td>{interval}</td>{}{}{}{}<td>{}</td><td>{}</td></tr>\n",
        escape(&finding.case),
        coloured(finding.verdict),
        escape(&finding.reason),
        p(finding.p_beyond),
        p(finding.p_opposite),
        p(finding.p_equivalent),
        p(finding.p_trend),
        finding.effects.len(),
        finding.unlearned
    )
}

/// Plots the effects of a prediction's cases with their confidence intervals, next to the smallest effect of interest.
///
/// # Errors
/// If there is nothing to draw.
pub fn effects(judged: &Judged) -> Result<Svg> {
    let prediction = &judged.prediction;
    let mut bars =
        Bars::new().title(&prediction.text).x_label(format!("effect on {}", prediction.metric.replace('_', " ")));
    for finding in &judged.findings {
        let name = format!("{} ({})", finding.case, finding.verdict);
        bars = match finding.effect {
            Some(effect) => bars.bar_between(name, effect.estimate, effect.low, effect.high),
            None => bars.bar(name, f64::NAN),
        };
    }
    let smallest = prediction.smallest;
    let sides: &[f64] = match prediction.expect {
        Expect::Greater => &[1.0],
        Expect::Less => &[-1.0],
        Expect::Zero => &[-1.0, 1.0],
    };
    sides.iter().fold(bars, |bars, side| bars.reference(side * smallest, "smallest of interest")).annotate(true).svg()
}
