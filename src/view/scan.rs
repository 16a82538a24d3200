//! What does one look at first? A [`Scan`] as one page of pictures.

use super::display::{Html, Svg};
use super::lens::lens;
use super::line::Lines;
use super::results::{attention_heads, table_html};
use super::text::{escape, token};
use crate::error::Result;
use crate::intervene::Scan;
use crate::table::{Observation, Table};

/// The style is scoped, so that it does not affect the rest of a notebook.
const STYLE: &str = ".headscope-scan{font-family:sans-serif;max-width:75em;margin:auto;line-height:1.4}\
.headscope-scan table{border-collapse:collapse}\
.headscope-scan td,.headscope-scan th{padding:.15em .7em;text-align:left}\
.headscope-scan code{margin-right:.5em}.headscope-scan .wide{overflow-x:auto}";

/// The most prompts of which a page has pictures.
const PROMPTS: usize = 8;
/// The most tokens of a prompt of which a page has pictures.
const LONGEST: usize = 400;

impl Scan {
    /// The scan as one page, which loads nothing from elsewhere: tokens, predictions, the lens, direct attribution, the
    /// strongest heads' attention, ablations. Of many prompts the first 8 have pictures of their own.
    ///
    /// # Errors
    /// If a picture cannot be drawn.
    pub fn page(&self) -> Result<Html> {
        let mut page = format!("<h1>Scan</h1>\n<p>{}</p>\n", escape(&self.model));
        for reason in &self.left_out {
            page.push_str(&format!("<p>Left out: {}.</p>\n", escape(reason)));
        }
        let predictions = self.predictions()?;
        for prompt in 0..self.tokens.batch().min(PROMPTS) {
            page.push_str(&self.prompt(prompt, predictions.as_ref())?);
        }
        if self.tokens.batch() > PROMPTS {
            page.push_str(&format!("<p>and {} more prompts</p>\n", self.tokens.batch() - PROMPTS));
        }
        page.push_str(&self.effects()?);
        Ok(Html::new(format!("<style>{STYLE}</style>\n<div class=\"headscope-scan\">\n{page}</div>\n")))
    }

    /// Shows the page in a notebook.
    pub fn evcxr_display(&self) {
        match self.page() {
            Ok(page) => page.evcxr_display(),
            Err(reason) => println!("{reason}"),
        }
    }

    /// Tokens, predictions, lens and attention of one prompt.
    fn prompt(&self, prompt: usize, predictions: Option<&Table>) -> Result<String> {
        let pieces = self.tokens.pieces(prompt);
        let shown = pieces.iter().enumerate();
        let shown: String = shown.map(|(at, piece)| format!("<code>{at} {}</code>", escape(&token(piece)))).collect();
        let mut page = format!("<h2>Prompt {prompt}</h2>\n<p>{shown}</p>\n");
        let own = |row: &Observation| row.keys.prompt == u32::try_from(prompt).ok();
        if let Some(predictions) = predictions {
            page.push_str(&format!("<h3>Next token</h3>\n{}\n", next(&predictions.filtered(own)?)?));
        }
        if pieces.len() > LONGEST {
            page.push_str(&format!("<p>{} tokens are too many for pictures.</p>\n", pieces.len()));
            return Ok(page);
        }
        if let Some(table) = &self.lens {
            page.push_str(&picture("Lens", &lens(&table.filtered(own)?)?));
        }
        let view = attention_heads(&self.patterns, &self.heads, prompt)?.html()?;
        page.push_str(&format!("<h3>The strongest heads</h3>\n{}\n", view.as_str()));
        Ok(page)
    }

    /// The pictures over all prompts.
    fn effects(&self) -> Result<String> {
        let mut page = format!("<h2>{}</h2>\n", if self.tokens.batch() > 1 { "Mean over prompts" } else { "Parts" });
        if let Some(curve) = &self.curve {
            let name = metric(curve)?;
            let lines = Lines::new().series(&name, &curve.curve("layer")?).x_label("layer").y_label(&name);
            page.push_str(&picture("The metric by depth", &lines.title("Logit lens").svg()?));
        }
        if let Some(table) = &self.attribution {
            let of = |site: &'static str| table.filtered(move |row| row.keys.site.as_deref() == Some(site));
            page.push_str(&picture("Direct attribution of heads", &of("result")?.heatmap("layer", "head")?));
            let mlps = of("mlp_out")?;
            if !mlps.is_empty() {
                page.push_str(&picture("Direct attribution of MLPs", &bars(&mlps)?));
            }
            page.push_str(&format!(
                "<h3>The largest terms</h3>\n<div class=\"wide\">{}</div>\n",
                table_html(&table.top(20)?)
            ));
        }
        page.push_str(&picture("Parts set to 0", &bars(&self.ablation)?));
        page.push_str(&format!("<div class=\"wide\">{}</div>\n", table_html(&self.ablation)));
        Ok(page)
    }
}

fn metric(table: &Table) -> Result<String> {
    Ok(table.rows()?.first().map(|row| row.metric.replace('_', " ")).unwrap_or_default())
}

/// A bar for each part.
fn bars(table: &Table) -> Result<Svg> {
    table.bars()?.title("").annotate(true).svg()
}

fn picture(title: &str, picture: &Svg) -> String {
    format!("<h3>{}</h3>\n<div class=\"wide\">{}</div>\n", escape(title), picture.as_str())
}

/// The likeliest tokens and their probabilities.
fn next(table: &Table) -> Result<String> {
    let row = |row: &Observation| {
        let text = row.keys.token.as_deref().unwrap_or_default();
        format!("<tr><td><code>{}</code></td><td>{:.4}</td></tr>", escape(&token(text)), row.value)
    };
    Ok(format!("<table>{}</table>", table.rows()?.iter().map(row).collect::<String>()))
}
