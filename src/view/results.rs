//! How do tables, runs and models look, in a picture or as the result of a notebook cell?

use ndarray::{Array2, Array3};
use tch::{Kind, Tensor};

use super::attention::Attention;
use super::bars::Bars;
use super::display::{Html, Svg};
use super::heatmap::Heatmap;
use super::text::{escape, token};
use crate::error::{Error, Result};
use crate::model::{Model, Run, Site, Tokens};
use crate::table::{Observation, Table};

/// What do the heads of a layer attend to, on the first prompt of a run?
///
/// The run must have tapped `pattern.<layer>`.
///
/// # Errors
/// [`Error::NotTapped`] if it has not.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let run = model.run(&Tokens::new(&[vec![5, 6, 7]])?, &Plan::new().tap(Site::Pattern(1)))?;
/// assert!(view::attention(&run, 1)?.as_str().contains("layer 1"));
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn attention(run: &Run, layer: usize) -> Result<Html> {
    attention_of(run, layer, 0)?.html()
}

/// What do the heads of a layer attend to, on any prompt of the batch? [`attention`] before it is drawn: to be given another
/// title, or drawn as a still picture.
///
/// # Errors
/// [`Error::NotTapped`] if the run has no `pattern.<layer>`, [`Error::OutOfRange`] if it has no such prompt.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat.", "a dog ran."])?;
/// let run = model.run(&tokens, &Plan::new().tap(Site::Pattern(1)))?;
/// let still = view::attention_of(&run, 1, 1)?.title("the second prompt").svg()?;
/// assert!(still.as_str().contains("the second prompt"));
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn attention_of(run: &Run, layer: usize, prompt: usize) -> Result<Attention> {
    let (pattern, tokens) = (run.get(Site::Pattern(layer))?, run.side(Site::Pattern(layer)));
    let limit = tokens.batch();
    if prompt >= limit {
        return Err(Error::OutOfRange {
            at: "attention view".into(),
            axis: "batch",
            found: prompt as i64,
            limit: limit as i64,
        });
    }
    // Padding is not part of the prompt.
    let length = tokens.row(prompt).len() as i64;
    let shown = pattern.get(prompt as i64).narrow(1, 0, length).narrow(2, 0, length);
    Ok(Attention::new(tokens.pieces(prompt), array3(&shown)?).layer(layer).title(format!("Attention in layer {layer}")))
}

/// What do some heads attend to, each a (layer, head) of any layer, on one prompt of the batch? Several of these, of any
/// prompts, stand side by side by [`Attention::beside`].
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat.", "a dog ran."])?;
/// let run = model.run(&tokens, &Plan::new().tap("pattern.*"))?;
/// let (first, second) = (view::attention_heads(&run, &[(0, 3), (2, 1)], 0)?, view::attention_heads(&run, &[(2, 1)], 1)?);
/// let page = Attention::beside(&[first, second])?;
/// assert!(page.as_str().contains("head 2.1"));
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// [`Error::NotTapped`] if the run has no `pattern` of a layer, [`Error::OutOfRange`] if it has no such prompt or head,
/// [`Error::Argument`] if there are no heads.
pub fn attention_heads(run: &Run, heads: &[(usize, usize)], prompt: usize) -> Result<Attention> {
    let Some(&(first, _)) = heads.first() else {
        return Err(Error::argument("heads", "at least one (layer, head)", "none"));
    };
    let tokens = run.side(Site::Pattern(first));
    if let Some((layer, _)) = heads.iter().find(|(layer, _)| !std::ptr::eq(run.side(Site::Pattern(*layer)), tokens)) {
        let expected = format!("heads that attend within one sequence, as those of layer {first}");
        return Err(Error::argument("heads", expected, format!("one of layer {layer}")));
    }
    let one = |&(layer, head): &(usize, usize)| {
        let pattern = run.get(Site::Pattern(layer))?;
        let shape = pattern.size();
        for (axis, found, limit) in [("batch", prompt as i64, shape[0]), ("head", head as i64, shape[1])] {
            if found >= limit {
                return Err(Error::OutOfRange { at: format!("attention view of layer {layer}"), axis, found, limit });
            }
        }
        // Padding is not part of the prompt.
        let length = tokens.row(prompt).len() as i64;
        Ok(pattern.get(prompt as i64).get(head as i64).narrow(0, 0, length).narrow(1, 0, length))
    };
    let patterns = heads.iter().map(one).collect::<Result<Vec<_>>>()?;
    let names = heads.iter().map(|(layer, head)| format!("head {layer}.{head}")).collect();
    let title = if tokens.batch() == 1 { "Attention".to_owned() } else { format!("Attention on prompt {prompt}") };
    Ok(Attention::new(tokens.pieces(prompt), array3(&Tensor::stack(&patterns, 0))?).head_names(names).title(title))
}

/// What does one head attend to, on the first prompt of several runs, for instance at several steps of training? Each run has a
/// name, shown instead of a head's.
///
/// ```
/// use headscope::prelude::*;
/// let tokens = Tokens::new(&[vec![5, 6, 7]])?;
/// let run = |seed| Model::random(&ModelConfig::default(), seed)?.run(&tokens, &Plan::new().tap(Site::Pattern(0)));
/// let frames = [("one".to_owned(), run(0)?), ("another".to_owned(), run(1)?)];
/// assert!(view::film(&frames, 0, 3)?.svg()?.as_str().contains("another"));
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// [`Error::NotTapped`] if a run has no `pattern.<layer>`, [`Error::OutOfRange`] if it has no such head, [`Error::Shape`] if
/// the first prompts differ in length, [`Error::Argument`] if there is no run.
pub fn film(frames: &[(String, Run)], layer: usize, head: usize) -> Result<Attention> {
    let none = || Error::argument("frames", "at least one run", 0);
    let side = |run: &Run| run.side(Site::Pattern(layer)).clone();
    let tokens = frames.first().map(|(_, run)| side(run)).ok_or_else(none)?;
    let length = tokens.row(0).len() as i64;
    let mut patterns = vec![];
    for (name, run) in frames {
        let pattern = run.get(Site::Pattern(layer))?.get(0);
        let (at, limit) = ("film".to_owned(), pattern.size()[0]);
        if head as i64 >= limit {
            return Err(Error::OutOfRange { at, axis: "head", found: head as i64, limit });
        }
        let own = side(run).row(0).len() as i64;
        if own != length {
            let (at, expected) = (format!("the first prompt of `{name}`"), format!("{length} tokens"));
            return Err(Error::Shape { at, expected, found: vec![own] });
        }
        patterns.push(pattern.get(head as i64).narrow(0, 0, length).narrow(1, 0, length));
    }
    let names = frames.iter().map(|(name, _)| name.clone()).collect();
    Ok(Attention::new(tokens.pieces(0), array3(&Tensor::stack(&patterns, 0))?)
        .head_names(names)
        .title(format!("Attention of head {layer}.{head}")))
}

/// `[head, query, key]` as ndarray.
fn array3(tensor: &Tensor) -> Result<Array3<f64>> {
    let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
    let values = Vec::<f64>::try_from(tensor.to_kind(Kind::Double).contiguous().flatten(0, -1));
    let values = values.map_err(Error::torch("reading a pattern"))?;
    let found = tensor.size();
    let wrong = |_| Error::Shape { at: "pattern".into(), expected: "[head, query, key]".into(), found };
    match *shape.as_slice() {
        [heads, queries, keys] => Array3::from_shape_vec((heads, queries, keys), values).map_err(wrong),
        _ => Err(Error::Shape { at: "pattern".into(), expected: "[head, query, key]".into(), found: tensor.size() }),
    }
}

impl Table {
    /// Where is the effect large? A heat map of value - baseline (of the value if there is no baseline) over two columns of
    /// whole numbers, such as `layer` and `head`, or of texts, such as `task`. A cell shows the mean of its rows, or grey if it
    /// has none.
    ///
    /// Positions (`position`, `query`, `key`, `target`) are labelled with their tokens, where the table's prompts have the
    /// same token there and a tokenizer made it.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = model.tokens(&["the cat sat on the mat."])?;
    /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).each(Site::ResidPre, [Every::Position]).run()?;
    /// let first = format!("0 {}", tokens.pieces(0)[0]);
    /// assert!(table.heatmap("layer", "position")?.as_str().contains(&first));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there is no such column.
    pub fn heatmap(&self, rows: &str, columns: &str) -> Result<Svg> {
        let (effects, values) = (self.has("baseline"), self.effect()?);
        let (y, x) = (self.places(rows)?, self.places(columns)?);
        let size = |places: &[Option<usize>]| places.iter().flatten().max().map_or(0, |&last| last + 1);
        let mut sum = Array2::<f64>::zeros((size(&y.rows), size(&x.rows)));
        let mut count = sum.clone();
        for ((y, x), value) in y.rows.iter().zip(&x.rows).zip(values) {
            if let (Some(y), Some(x)) = (*y, *x) {
                sum[[y, x]] += value;
                count[[y, x]] += 1.0;
            }
        }
        let metric = self.frame().column("metric").ok().and_then(|names| names.str().ok()?.get(0).map(str::to_owned));
        let metric = metric.unwrap_or_default().replace('_', " ");
        let how = self.provenance().options["what"].get("change").map(how).unwrap_or_default();
        let title = if effects { format!("Change in {metric}{how}") } else { format!("{metric}{how}") };
        let mut map = Heatmap::new(sum / count).title(title).x_label(columns).y_label(rows);
        let ticks = |column: &str, names: Option<Vec<String>>, n: usize| {
            names.or_else(|| {
                let known = token_ticks(self, column, None)?;
                Some((0..n).map(|at| known.get(at).cloned().unwrap_or_else(|| at.to_string())).collect())
            })
        };
        let (ys, xs) = (size(&y.rows), size(&x.rows));
        map = unit_of(self).into_iter().fold(map, Heatmap::unit);
        map = ticks(rows, y.names, ys).into_iter().fold(map, Heatmap::y_ticks);
        ticks(columns, x.names, xs).into_iter().fold(map, Heatmap::x_ticks).svg()
    }

    /// Which row is larger? A bar for each row, in the table's order, with its effect ([`Table::effect`]): after
    /// [`Table::top`], the strongest few. Bars are named by what the rows are about: `head 5.10`, `mlp_out.3`, and of paths
    /// `20.0 to q.23.3@END`. Rows with an interval have an error bar.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).run()?;
    /// let picture = table.top(5)?.bars()?.title("The strongest heads").svg()?;
    /// assert!(picture.as_str().contains("head 2."));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Table::rows`].
    pub fn bars(&self) -> Result<Bars> {
        let rows = self.rows()?;
        let metric = rows.first().map(|row| row.metric.replace('_', " ")).unwrap_or_default();
        let (title, axis) = if self.has("baseline") { ("Change in ", "change") } else { ("", "value") };
        let unit = unit_of(self).map_or_else(String::new, |unit| format!(" ({unit})"));
        let bars = Bars::new().title(format!("{title}{metric}")).x_label(format!("{axis}{unit}"));
        let bar = |bars: Bars, row: &Observation| {
            let base = row.baseline.unwrap_or(0.0);
            match (row.low, row.high) {
                (Some(low), Some(high)) => bars.bar_between(row_name(row), row.value - base, low - base, high - base),
                _ => bars.bar(row_name(row), row.value - base),
            }
        };
        Ok(rows.iter().fold(bars, bar))
    }

    /// Shows the table in a notebook.
    pub fn evcxr_display(&self) {
        Html::new(table_html(self)).evcxr_display();
    }
}

/// What a row is about, in few letters.
fn row_name(row: &Observation) -> String {
    let keys = &row.keys;
    let place = |site: Option<&str>, layer: Option<u32>, head: Option<u32>, at: Option<&str>| {
        let numbers: Vec<String> = [layer, head].into_iter().flatten().map(|number| number.to_string()).collect();
        let name = match (site, numbers.is_empty()) {
            (Some("z" | "result") | None, false) if head.is_some() => format!("head {}", numbers.join(".")),
            (Some(site), false) => format!("{site}.{}", numbers.join(".")),
            (Some(site), true) => site.to_owned(),
            (None, false) => format!("layer {}", numbers.join(".")),
            (None, true) => String::new(),
        };
        at.map_or_else(|| name.clone(), |at| format!("{name}@{at}"))
    };
    let from = place(keys.from_site.as_deref(), keys.from_layer, keys.from_head, keys.from_at.as_deref());
    let to = place(keys.site.as_deref(), keys.layer, keys.head.or(keys.kv_head), keys.at.as_deref());
    let via = keys.via.iter().flat_map(|via| via.split(' ')).map(str::to_owned);
    let path = [from].into_iter().chain(via).chain([to]).filter(|name| !name.is_empty());
    let others = [keys.method.clone(), keys.set.clone(), keys.task.clone(), keys.token.clone()];
    let others = others.into_iter().flatten();
    let position = keys.position.map(|position| format!("position {position}"));
    [path.collect::<Vec<_>>().join(" to ")]
        .into_iter()
        .filter(|name| !name.is_empty())
        .chain(others)
        .chain(position)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The unit of a table's values, if all rows have the same one.
fn unit_of(table: &Table) -> Option<String> {
    let units = table.frame().column("unit").ok()?.str().ok()?.clone();
    let first = units.get(0)?.to_owned();
    units.iter().all(|unit| unit == Some(&first)).then_some(first)
}

/// A label for each position of a table's prompts, `3 ·cat`: its number, and its token if all prompts that the table is
/// about have the same one there. `None` if the column is none of positions, or no texts are known. The texts come from the
/// table's provenance, so a table that was written and read again has them, too.
pub(super) fn token_ticks(table: &Table, column: &str, prompt: Option<u32>) -> Option<Vec<String>> {
    if !["position", "query", "key", "target"].contains(&column) {
        return None;
    }
    let pieces = &table.provenance().options["what"]["tokens"]["pieces"];
    let all: Vec<Vec<String>> = serde_json::from_value(pieces.clone()).ok()?;
    let shown: Vec<usize> = match (prompt, table.f64("prompt")) {
        (Some(prompt), _) => vec![prompt as usize],
        (None, Ok(prompts)) => {
            prompts.into_iter().filter(|prompt| *prompt >= 0.0).map(|prompt| prompt as usize).collect()
        }
        (None, Err(_)) => (0..all.len()).collect(),
    };
    let shown: Vec<&Vec<String>> = (0..all.len()).filter(|row| shown.contains(row)).map(|row| &all[row]).collect();
    let longest = shown.iter().map(|row| row.len()).max()?;
    let at = |position: usize| {
        let mut texts = shown.iter().filter_map(|row| row.get(position));
        let first = texts.next()?;
        texts.all(|text| text == first).then(|| format!("{position} {}", token(first)))
    };
    Some((0..longest).map(|position| at(position).unwrap_or_else(|| position.to_string())).collect())
}

/// `, mean ablation` from a sweep's change in its provenance: `{"ablation": "mean"}`.
fn how(change: &serde_json::Value) -> String {
    let Some((what, kind)) = change.as_object().and_then(|change| change.iter().next()) else { return String::new() };
    let kind = match kind {
        serde_json::Value::String(kind) => Some(kind),
        serde_json::Value::Object(kind) => kind.keys().next(),
        _ => None,
    };
    kind.map_or_else(String::new, |kind| format!(", {kind} {what}"))
}

/// How many rows are shown before a table is cut.
const SHOWN: usize = 30;

pub(super) fn table_html(table: &Table) -> String {
    let frame = table.frame();
    let cell = |tag: &str, text: &str| format!("<{tag}>{}</{tag}>", escape(text));
    let head: String = table.columns().iter().map(|name| cell("th", name)).collect();
    let mut body = String::new();
    for row in 0..frame.height().min(SHOWN) {
        let cells = frame.columns().iter().map(|column| match column.get(row) {
            Ok(polars::prelude::AnyValue::Float64(value)) => cell("td", &format!("{value:.5}")),
            Ok(polars::prelude::AnyValue::String(text)) => cell("td", text),
            Ok(polars::prelude::AnyValue::StringOwned(text)) => cell("td", &text),
            Ok(value) => cell("td", &value.to_string()),
            Err(_) => cell("td", ""),
        });
        body.push_str(&format!("<tr>{}</tr>", cells.collect::<String>()));
    }
    let more = match frame.height().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("<p>and {more} more rows</p>"),
        _ => String::new(),
    };
    format!("<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}")
}

impl Model {
    /// Shows the model in a notebook: its architecture in one line.
    pub fn evcxr_display(&self) {
        Html::new(format!("<p>{}</p>", escape(&self.summary()))).evcxr_display();
    }
}

impl Tokens {
    /// Shows the prompts in a notebook, token by token.
    pub fn evcxr_display(&self) {
        let row = |prompt: usize| {
            let piece = |text: &String| {
                format!("<code style=\"margin-right:0.4em\">{}</code>", escape(&text.replace(' ', "·")))
            };
            format!("<p>{}: {}</p>", prompt, self.pieces(prompt).iter().map(piece).collect::<String>())
        };
        Html::new((0..self.batch()).map(row).collect()).evcxr_display();
    }
}

impl Run {
    /// Shows what the run recorded in a notebook.
    pub fn evcxr_display(&self) {
        let row = |(site, tensor): (Site, &Tensor)| {
            let axes: Vec<&str> = site.axes().iter().map(|axis| axis.name()).collect();
            format!("<tr><td>{site}</td><td>[{}]</td><td>{:?}</td></tr>", axes.join(", "), tensor.size())
        };
        let rows: String = self.taps().map(row).collect();
        Html::new(format!("<table><thead><tr><th>site</th><th>axes</th><th>shape</th></tr></thead>{rows}</table>"))
            .evcxr_display();
    }
}
