//! What did the experiments find? The results as one HTML page.

use crate::error::Result;
use crate::lab::experiment::Results;
use crate::lab::verdict::{Decided, Judged, Judgement, Side, Verdict, first};
use crate::view::{Bars, Html, Svg, escape};

/// Renders experiments as one page: the verdict on every sub-claim and, for each, its effects with the intervals that
/// decide, next to the threshold. Everything is computed from the results and the rule stored with them.
///
/// # Errors
/// If the results lack values that the rule reads, or a plot cannot be drawn.
pub fn report(results: &[Results]) -> Result<Html> {
    let judged = results.iter().map(Results::judge).collect::<Result<Vec<_>>>()?;
    let mut page = "<h1>Why do heads specialise? What the lab found</h1>\n".to_owned();
    page.push_str(&overview(&judged));
    for (results, judgement) in results.iter().zip(&judged) {
        page.push_str(&section(results, judgement)?);
    }
    Ok(styled(&page))
}

/// The style is scoped, so that it does not affect the rest of a notebook.
pub(super) fn styled(page: &str) -> Html {
    Html::new(format!("<style>{STYLE}</style>\n<div class=\"headscope-lab\">\n{page}</div>\n"))
}

const STYLE: &str = ".headscope-lab{font-family:sans-serif;max-width:60em;margin:auto;line-height:1.4}\
.headscope-lab table{border-collapse:collapse;margin:1em 0}\
.headscope-lab td,.headscope-lab th{padding:.25em .7em;text-align:left;border-bottom:1px solid #8884;vertical-align:top}\
.headscope-lab .holds{color:#1a7f37}.headscope-lab .fails{color:#b3261e}\
.headscope-lab .depends{color:#8a5a00}\
.headscope-lab .threshold,.headscope-lab .open,.headscope-lab .untested{color:#777}\
.headscope-lab svg{max-width:100%;height:auto}";

/// A verdict as coloured HTML.
pub(super) fn coloured(verdict: Verdict, name: &str) -> String {
    let class = verdict.name().rsplit(' ').next().unwrap_or_default();
    format!("<b class=\"{class}\">{}</b>", escape(name))
}

/// A verdict in English.
fn named(verdict: Verdict) -> String {
    coloured(verdict, verdict.name())
}

/// The verdict on each sub-claim.
fn overview(judged: &[Judgement]) -> String {
    let mut rows = String::new();
    for (judgement, judged) in
        judged.iter().flat_map(|judgement| judgement.sub_claims.iter().map(move |j| (judgement, j)))
    {
        let claim = &judged.sub_claim;
        rows.push_str(&format!(
            "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(&claim.id),
            escape(&claim.text),
            escape(claim.setting.name()),
            named(judged.decided().verdict),
            escape(&judgement.experiment)
        ));
    }
    format!("<table><tr><th></th><th>claim</th><th>setting</th><th>verdict</th><th>from</th></tr>\n{rows}</table>\n")
}

fn section(results: &Results, judgement: &Judgement) -> Result<String> {
    let experiment = &results.experiment;
    let mut page = format!("<h2>{}: {}</h2>\n", escape(&experiment.id), escape(&experiment.title));
    page.push_str(&format!("<p>{}</p>\n", escape(&experiment.question)));
    page.push_str(&format!("<p>{} cells, seeds from {}.", experiment.cells.len(), experiment.seed));
    if !judgement.sub_claims.is_empty() {
        page.push_str(&format!(" Rule: {}.", escape(&judgement.rule.to_string())));
    }
    page.push_str("</p>\n");
    if !results.missing.is_empty() {
        page.push_str(&format!("<p>Missing cells: {}.</p>\n", escape(&results.missing.join(", "))));
    }
    for note in &judgement.notes {
        page.push_str(&format!("<p>Note: {}.</p>\n", escape(note)));
    }
    for judged in &judgement.sub_claims {
        page.push_str(&sub_claim(judged)?);
    }
    page.push_str(&by_the_first_rule(judgement));
    Ok(page)
}

fn sub_claim(judged: &Judged) -> Result<String> {
    let (claim, decided) = (&judged.sub_claim, judged.decided());
    let told = claim.to_string();
    let told = told.lines().nth(1).unwrap_or_default().trim();
    let mut page = format!(
        "<h3>{}: {}</h3>\n<p>{}{}{} Claimed, {}: {}.</p>\n",
        escape(&claim.id),
        escape(&claim.text),
        named(decided.verdict),
        if decided.reason.is_empty() { String::new() } else { format!(" ({})", escape(&decided.reason)) },
        if judged.differs() { format!("; over all runs: {}.", named(judged.all.verdict)) } else { ".".to_owned() },
        claim.form.name(),
        escape(told)
    );
    page.push_str(effects(judged)?.as_str());
    page.push_str(&findings(decided));
    Ok(page)
}

fn findings(decided: &Decided) -> String {
    let mut rows = String::new();
    for finding in &decided.findings {
        rows.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{} of {}</td></tr>\n",
            escape(&finding.case),
            named(finding.verdict),
            finding.effect(),
            finding.effects.len(),
            finding.seeds
        ));
    }
    let gates = decided.gates.iter().map(|gate| {
        let state = gate.holds.map_or("undecided", |holds| if holds { "passed" } else { "failed" });
        format!(
            "<tr><td>gate: {} ({})</td><td>{state}</td><td></td><td></td></tr>\n",
            escape(&gate.gate),
            escape(&gate.case)
        )
    });
    let gates: String = gates.collect();
    format!("<table><tr><th>case</th><th>verdict</th><th>effect</th><th>seeds</th></tr>\n{rows}{gates}</table>\n")
}

fn by_the_first_rule(judgement: &Judgement) -> String {
    let Some(rule) = &judgement.first_rule else { return String::new() };
    let row = |judged: &first::Judged| {
        let first::Judged { prediction, verdict, .. } = judged;
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(&prediction.claim),
            escape(&prediction.text),
            verdict.name()
        )
    };
    let rows: String = judgement.first.iter().map(row).collect();
    let rule = escape(&rule.to_string());
    format!(
        "<details><summary>The same tables by the first rule</summary><p>{rule}.</p><table>{rows}</table></details>\n"
    )
}

/// Plots the effects of a sub-claim's cases with the intervals that decide, next to the threshold.
///
/// # Errors
/// If there is nothing to draw.
pub fn effects(judged: &Judged) -> Result<Svg> {
    let (claim, decided) = (&judged.sub_claim, judged.decided());
    let side = if claim.endpoint.expect == Side::Above { "above" } else { "below" };
    let mut bars =
        Bars::new().title(&claim.text).x_label(format!("effect on {}", claim.endpoint.metric.replace('_', " ")));
    for finding in &decided.findings {
        let name = format!("{} ({})", finding.case, finding.verdict);
        bars = match finding.interval {
            Some(effect) => bars.bar_between(name, effect.estimate, effect.low, effect.high),
            None => bars.bar(name, f64::NAN),
        };
    }
    bars.reference(claim.endpoint.delta, format!("claimed: {side} this")).annotate(true).svg()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::lab::experiment::{Circle, Work};
    use crate::lab::verdict::{Contrast, Gate, Limit, Reading};
    use crate::lab::{Experiment, Grid, RunOptions};
    use crate::view::assert_well_formed;

    const MARKUP: &str = "1 < 2 & \"so\" > <b>";

    /// Texts of a declaration may hold anything; a sub-claim may be open or untested, and lack effects altogether.
    #[test]
    fn the_page_is_well_formed_whatever_a_declaration_says() {
        let mut experiment = Experiment::named("E1", Grid::Small).unwrap();
        experiment.cells.iter_mut().enumerate().for_each(|(number, cell)| {
            cell.work = Work::Circle(Circle { n: 3 + number % 5, beta: 20.0 });
        });
        (experiment.title, experiment.question) = (MARKUP.to_owned(), MARKUP.to_owned());
        for (number, claim) in experiment.sub_claims.iter_mut().enumerate() {
            (claim.text, claim.endpoint.scale) = (MARKUP.to_owned(), MARKUP.to_owned());
            claim.endpoint.metric = if number == 0 { "target_weight" } else { "not_measured" }.to_owned();
            claim.cases.iter_mut().for_each(|case| case.name = format!("{} {MARKUP}", case.name));
            let cases = vec![Contrast::of(MARKUP, &experiment.cells[0].name)];
            let (text, metric, limit) = (MARKUP.to_owned(), "rank".to_owned(), Limit::Above(2.5));
            claim.gates = vec![Gate { text, metric, task: None, reading: Reading::End, limit, cases }];
        }
        let folder = tempfile::tempdir().unwrap();
        experiment.run(folder.path(), &RunOptions { shard: (1, 2), ..RunOptions::default() }).unwrap();
        let part = Results::read(folder.path()).unwrap();
        experiment.run(folder.path(), &RunOptions { shard: (2, 2), ..RunOptions::default() }).unwrap();
        let whole = Results::read(folder.path()).unwrap();
        let (some, all) = (part.judge().unwrap(), whole.judge().unwrap());
        let page = report(&[part, whole]).unwrap();
        assert_well_formed(page.as_str());
        assert!(page.as_str().contains("1 &lt; 2 &amp;") && page.as_str().contains("first rule"));
        for judged in some.sub_claims.iter().chain(&all.sub_claims) {
            assert!(page.as_str().contains(&named(judged.decided().verdict)), "{judged}");
        }
    }
}
