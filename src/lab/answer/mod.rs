//! Why do heads specialise? The answer: one row for each sub-claim and a few paragraphs, all computed from results.
//!
//! What the paragraphs say is written beforehand for each verdict (`sentences.json`); which sentences stand in them, and
//! every number, comes from the tables.

mod sentences;

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use self::sentences::{Page, sentences};
use super::experiment::Results;
use super::report::{coloured, styled};
use super::verdict::{Finding, Form, Judged, Setting, Side, Verdict};
use crate::error::{Error, Result};
use crate::file;
use crate::view::{Html, escape};

/// The lines between which a Markdown file has the answer.
const BEGIN: &str = "<!-- answer -->\n";
const END: &str = "<!-- /answer -->";

/// A language of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tongue {
    /// English.
    English,
    /// Chinese, in which the question was first asked.
    Chinese,
}

/// The answer to one sub-claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The experiment that decides it.
    pub experiment: String,
    /// The verdicts and findings.
    pub judged: Judged,
}

/// What the experiments say about every sub-claim.
///
/// ```no_run
/// use headscope::lab::{Answer, Results, Tongue};
/// let results: Vec<Results> = Results::read_all("notebooks/results")?.into_iter().map(|(_, results)| results).collect();
/// let answer = Answer::of(&results)?;
/// println!("{}", answer.markdown(Tongue::English));
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The sub-claims, in order.
    pub rows: Vec<Row>,
}

impl Answer {
    /// Judges the sub-claims of experiments.
    ///
    /// # Errors
    /// As for [`Results::judge`].
    pub fn of(results: &[Results]) -> Result<Self> {
        let mut rows = vec![];
        for results in results {
            let judgement = results.judge()?;
            let experiment = judgement.experiment;
            rows.extend(judgement.sub_claims.into_iter().map(|judged| Row { experiment: experiment.clone(), judged }));
        }
        rows.sort_by(|a, b| a.key().cmp(&b.key()));
        Ok(Self { rows })
    }

    /// The row of a sub-claim, in the lab's own languages unless another setting is given with it (`C1b`, or
    /// `C1b/natural_text`).
    pub fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name() == id)
    }

    /// The paragraphs and the table as Markdown.
    pub fn markdown(&self, tongue: Tongue) -> String {
        let page = sentences(tongue);
        let mut text = String::new();
        for paragraph in self.paragraphs(tongue) {
            let _ = write!(text, "{paragraph}\n\n");
        }
        let _ = write!(text, "| {} |\n|---|---|---|---|---|---|\n", page.columns.join(" | "));
        for row in &self.rows {
            let cells = row.cells(page);
            let _ = writeln!(text, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
        }
        text
    }

    /// Writes the answer into a Markdown file, between the lines `<!-- answer -->` and `<!-- /answer -->`.
    ///
    /// # Errors
    /// If the file cannot be read or written, or does not have both lines, in this order.
    pub fn write_into(&self, path: impl AsRef<Path>, tongue: Tongue) -> Result<()> {
        let path = path.as_ref();
        let page = String::from_utf8_lossy(&file::read(path)?).into_owned();
        let begin = page.find(BEGIN).map(|at| at + BEGIN.len());
        let (Some(begin), Some(end)) = (begin, page.find(END).filter(|end| Some(*end) >= begin)) else {
            return Err(Error::Format {
                path: path.to_owned(),
                at: "the answer".to_owned(),
                expected: format!("the lines {} and {END}, in this order", BEGIN.trim()),
                found: "not both".to_owned(),
            });
        };
        let text = format!("{}{}{}", &page[..begin], self.markdown(tongue), &page[end..]);
        file::write_bytes(path, text.as_bytes())
    }

    /// The table and the paragraphs as HTML, for a notebook.
    pub fn html(&self, tongue: Tongue) -> Html {
        let page = sentences(tongue);
        let mut text = String::new();
        for paragraph in self.paragraphs(tongue) {
            let title = paragraph.strip_prefix("**").and_then(|rest| rest.split_once("**"));
            let (title, rest) = title.unwrap_or(("", &paragraph));
            let _ = writeln!(text, "<p><b>{}</b>{}</p>", escape(title), escape(rest));
        }
        let heads: String = page.columns.iter().map(|column| format!("<th>{}</th>", escape(column))).collect();
        let _ = writeln!(text, "<table><tr>{heads}</tr>");
        for row in &self.rows {
            let [id, claim, _, number, n, from] = row.cells(page).map(|cell| escape(&cell));
            let verdict = row.judged.decided().verdict;
            let verdict = coloured(verdict, page.verdict(verdict));
            let _ = writeln!(
                text,
                "<tr><th>{id}</th><td>{claim}</td><td>{verdict}</td><td>{number}</td><td>{n}</td><td>{from}</td></tr>"
            );
        }
        text.push_str("</table>\n");
        styled(&text)
    }

    /// The paragraphs: for each question, the sentences that its sub-claims' verdicts select, with the numbers of the
    /// tables. A sub-claim without a result gives no sentence.
    pub fn paragraphs(&self, tongue: Tongue) -> Vec<String> {
        let page = sentences(tongue);
        let paragraph = |question: &sentences::Question| {
            let told = question.sentences.iter().filter_map(|sentence| {
                let row = self.row(&sentence.of)?;
                let text = sentence.told.get(&row.judged.decided().verdict).or(sentence.otherwise.as_ref())?;
                Some(row.filled(text, page))
            });
            let told: Vec<String> = told.collect();
            (!told.is_empty()).then(|| format!("**{}** {}", question.title, told.join(page.between.as_str())))
        };
        page.questions.iter().filter_map(paragraph).collect()
    }
}

impl Row {
    fn key(&self) -> (Setting, &str, &str) {
        (self.judged.sub_claim.setting, &self.judged.sub_claim.id, &self.experiment)
    }

    /// The sub-claim's id, with its setting where that is not the lab's own languages.
    fn name(&self) -> String {
        let claim = &self.judged.sub_claim;
        match claim.setting {
            Setting::MadeUp => claim.id.clone(),
            Setting::NaturalText => format!("{}/natural_text", claim.id),
            Setting::RealModels => format!("{}/real_models", claim.id),
        }
    }

    /// The finding that decides: the weakest where the claim holds in every case, the one that fails most clearly where
    /// it falls.
    fn deciding(&self) -> Option<&Finding> {
        let (claim, decided) = (&self.judged.sub_claim, self.judged.decided());
        let sign = if claim.endpoint.expect == Side::Above { 1.0 } else { -1.0 };
        // What is undecided does not decide, however far out it lies.
        let decisive = decided.findings.iter().any(|finding| finding.verdict == decided.verdict);
        let decides = |finding: &&Finding| !decisive || finding.verdict == decided.verdict;
        let known = decided.findings.iter().filter(|finding| finding.interval.is_some()).filter(decides);
        let support = |finding: &&Finding| sign * finding.interval.map_or(0.0, |interval| interval.estimate);
        let strongest = claim.form == Form::Existential && decided.verdict == Verdict::Holds;
        let order = |a: &&Finding, b: &&Finding| support(a).total_cmp(&support(b));
        if strongest { known.max_by(order) } else { known.min_by(order) }
    }

    /// The finding at the other end.
    fn opposite(&self) -> Option<&Finding> {
        let deciding = self.deciding()?;
        let apart = |finding: &&Finding| {
            let of = |finding: &Finding| finding.interval.map_or(0.0, |interval| interval.estimate);
            (of(finding) - of(deciding)).abs()
        };
        let known = self.judged.decided().findings.iter().filter(|finding| finding.interval.is_some());
        known.max_by(|a, b| apart(a).total_cmp(&apart(b)))
    }

    /// The cells of the table: id, claim, answer, number with interval, number of seeds, source.
    fn cells(&self, page: &Page) -> [String; 6] {
        let (claim, decided) = (&self.judged.sub_claim, self.judged.decided());
        let text = page.claim(&self.name()).map_or_else(|| claim.text.clone(), str::to_owned);
        let mut verdict = page.verdict(decided.verdict).to_owned();
        if self.judged.differs() {
            let _ = write!(verdict, " ({}: {})", page.over_all, page.verdict(self.judged.all.verdict));
        }
        let side = if claim.endpoint.expect == Side::Above { ">" } else { "<" };
        let number = |finding: &Finding| {
            let alone = decided.findings.len() == 1;
            let case = if alone { String::new() } else { format!(" ({})", finding.case) };
            format!("{}{case}", finding.effect())
        };
        let mut numbers = self.deciding().map_or_else(String::new, number);
        if decided.verdict == Verdict::Depends {
            let _ = write!(numbers, "; {}", self.opposite().map_or_else(String::new, number));
        }
        let _ = write!(numbers, "; {side} {}", claim.endpoint.delta);
        let n = decided.findings.iter().map(|finding| finding.effects.len()).min().unwrap_or(0);
        let name = if claim.setting == Setting::MadeUp {
            String::new()
        } else {
            format!(" ({})", page.setting(claim.setting))
        };
        [claim.id.clone(), format!("{text}{name}"), verdict, numbers, n.to_string(), self.experiment.clone()]
    }

    /// A sentence with its numbers: `{effect}` and `{case}` of the deciding case, `{other}` and `{other_case}` of the one
    /// at the other end, `{low}` and `{high}` of the deciding interval, `{holding}` and `{failing}` cases, `{n}` seeds,
    /// `{percent}` and `{other_percent}`, the effects as percentages.
    fn filled(&self, text: &str, page: &Page) -> String {
        let decided = self.judged.decided();
        let estimate = |finding: Option<&Finding>| finding.and_then(|finding| finding.interval).map(|i| i.estimate);
        let number = |x: Option<f64>| x.map_or("?".to_owned(), |x| format!("{x:.2}").replace("-0.00", "0.00"));
        let percent = |x: Option<f64>| x.map_or("?".to_owned(), |x| format!("{:.0} %", 100.0 * x));
        let case = |finding: Option<&Finding>| finding.map_or(String::new(), |finding| page.case(&finding.case));
        let of = |verdict: Verdict| {
            let named = decided.findings.iter().filter(|finding| finding.verdict == verdict);
            named.map(|finding| page.case(&finding.case)).collect::<Vec<_>>().join(&page.listed)
        };
        let (deciding, other) = (self.deciding(), self.opposite());
        let interval = deciding.and_then(|finding| finding.interval);
        let filled = [
            ("{effect}", number(estimate(deciding))),
            ("{low}", number(interval.map(|interval| interval.low))),
            ("{high}", number(interval.map(|interval| interval.high))),
            ("{case}", case(deciding)),
            ("{other}", number(estimate(other))),
            ("{other_case}", case(other)),
            ("{percent}", percent(estimate(deciding))),
            ("{other_percent}", percent(estimate(other))),
            ("{holding}", of(Verdict::Holds)),
            ("{failing}", of(Verdict::Fails)),
            ("{delta}", self.judged.sub_claim.endpoint.delta.to_string()),
            ("{n}", decided.findings.iter().map(|finding| finding.effects.len()).min().unwrap_or(0).to_string()),
        ];
        filled.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}
