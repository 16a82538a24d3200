//! How easily does a probe learn labels from x, and does it read them or memorise them? Online codes and control tasks.

use ndarray::{ArrayView2, Axis};
use rand::Rng;
use serde::Serialize;

use super::{Asked, Known, Probe, ProbeOptions, classes, held_out, interval, labelled, log_softmax};
use crate::error::{Error, Result};
use crate::information::{Estimate, Warning};
use crate::stats::{Interval, shuffled, stream};

/// The cost of sending labels to someone who has x, in nats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OnlineCode {
    /// The code length with a probe that learns from the labels sent so far.
    pub codelength: f64,
    /// Its interval, by the bootstrap over samples; the cost of the first block is fixed.
    pub interval: Interval,
    /// The code length without x and without learning: `n ln K` (`n log2 K` bits).
    pub uniform: f64,
    /// `uniform / codelength`: above 1 if x helps.
    pub compression: f64,
    /// Number of samples.
    pub n: usize,
    /// Dimensions of x, and number of classes.
    pub dimensions: Vec<usize>,
    /// What speaks against it.
    pub warnings: Vec<Warning>,
}

/// How many nats does it take to send labels to someone who has x? The online code (Voita & Titov 2020) sends the first block
/// at `ln K` per label and each further one with a probe fitted to all labels before it. The code is short only if few examples
/// suffice to learn the labels, whereas accuracy asks only whether many do.
///
/// Blocks end at 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50 and 100 % of the samples, in an order drawn from the seed.
///
/// # Shapes
/// `x`: \[sample, dimension\]; `labels`: \[sample\], numbered from 0.
///
/// # Errors
/// As [`v_information_of_labels`](super::v_information_of_labels).
///
/// ```
/// use headscope::information::{ProbeOptions, online_code};
/// let labels: Vec<usize> = (0..400).map(|i| i / 7 % 2).collect();
/// let x = ndarray::Array2::from_shape_fn((400, 1), |(row, _)| labels[row] as f64 + (row as f64).sin() / 4.0);
/// let code = online_code(x.view(), &labels, &ProbeOptions::default(), 0)?;
/// assert!(code.compression > 2.0);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn online_code(x: ArrayView2<f64>, labels: &[usize], options: &ProbeOptions, seed: u64) -> Result<OnlineCode> {
    options.validate()?;
    let mut warnings = vec![];
    let (x, classes) = labelled(x, labels, &mut warnings)?;
    let n = labels.len();
    let order = shuffled(&(0..n).collect::<Vec<_>>(), seed);
    let ends = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0];
    let mut ends: Vec<usize> =
        ends.iter().map(|share| ((share * n as f64).round() as usize).max(classes.min(n))).collect();
    ends.dedup();
    let first = ends[0] as f64 * (classes as f64).ln();
    let mut costs = vec![];
    for pair in ends.windows(2) {
        let (fit, predict) = (&order[..pair[0]], &order[pair[0]..pair[1]]);
        let known = Known::Labels { labels: fit.iter().map(|&row| labels[row]).collect(), classes };
        let probe = Probe::fit(x.rows.select(Axis(0), fit).view(), &known, options, None, seed)?;
        let scores = probe.scores(x.rows.select(Axis(0), predict).view());
        for (row, scores) in predict.iter().zip(scores.rows()) {
            // A probe fitted to few examples can be confident and wrong, so a hundredth of the uniform code is mixed in, as a
            // coder would.
            costs.push(-(0.99 * log_softmax(scores)[labels[*row]].exp() + 0.01 / classes as f64).ln());
        }
    }
    if n < 10 * x.dimensions() {
        warnings.push(Warning::Dimension { dimensions: x.dimensions(), needed: 10 * x.dimensions() });
    }
    let mean = interval(&costs, options.level, seed)?;
    let whole = |mean: f64| first + costs.len() as f64 * mean;
    let codelength = whole(mean.estimate);
    let interval = Interval { estimate: codelength, low: whole(mean.low), high: whole(mean.high), level: mean.level };
    let uniform = n as f64 * (classes as f64).ln();
    let (compression, dimensions) = (uniform / codelength, vec![x.dimensions(), classes]);
    Ok(OnlineCode { codelength, interval, uniform, compression, n, dimensions, warnings })
}

/// Accuracies of a probe on a task and on its control.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Selectivity {
    /// Held-out accuracy on the task.
    pub task: f64,
    /// Held-out accuracy on the control task.
    pub control: f64,
    /// Task minus control.
    pub selectivity: f64,
    /// The selectivity (an accuracy, not nats) with interval, convergence, null and warnings.
    pub estimate: Estimate,
}

/// Does the probe read x, or memorise? Its held-out accuracy minus that on a control task, in which each type (each word, say)
/// has a random label drawn from the labels' distribution (Hewitt & Liang 2019).
///
/// # Shapes
/// `x`: \[sample, dimension\]; `labels`, `types`: \[sample\], numbered from 0.
///
/// # Errors
/// As [`v_information_of_labels`](super::v_information_of_labels), and if the types differ in number or all control labels come
/// out the same.
///
/// ```
/// use headscope::information::{ProbeOptions, selectivity};
/// let words: Vec<usize> = (0..600).map(|i| i % 30).collect();
/// let labels: Vec<usize> = words.iter().map(|word| word % 2).collect();
/// let x = ndarray::Array2::from_shape_fn((600, 1), |(row, _)| labels[row] as f64 + (row as f64).sin() / 4.0);
/// let found = selectivity(x.view(), &labels, &words, &ProbeOptions::default(), 0)?;
/// assert!(found.task > 0.99 && found.selectivity > 0.2); // it reads the label, and cannot memorise words
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn selectivity(
    x: ArrayView2<f64>,
    labels: &[usize],
    types: &[usize],
    options: &ProbeOptions,
    seed: u64,
) -> Result<Selectivity> {
    options.validate()?;
    let mut warnings = vec![];
    let (x, own) = labelled(x, labels, &mut warnings)?;
    if types.len() != labels.len() {
        let (expected, found) = (format!("[sample {}]", labels.len()), vec![types.len() as i64]);
        return Err(Error::Shape { at: "types".into(), expected, found });
    }
    let draw = |kind: usize| labels[stream(seed, kind + 1).random_range(0..labels.len())];
    let control: Vec<usize> = types.iter().map(|&kind| draw(kind)).collect();
    let sizes = [own, classes(&x, &control)?];
    let right = |labels: &[usize], classes: usize, rows: &[usize], order: &[usize]| -> Result<Vec<f64>> {
        let mut hits = vec![];
        held_out(&x, rows, order, labels, classes, options, seed, |log_p, _, label| {
            let first = log_p.iter().enumerate().all(|(class, p)| class == label || *p < log_p[label]);
            hits.push(f64::from(u8::from(first)));
        })?;
        Ok(hits)
    };
    let asked = Asked { n: labels.len(), dimensions: vec![x.dimensions(), sizes[0]], warnings };
    let mut estimate = asked.answer(options, seed, |rows, order| {
        let task = right(labels, sizes[0], rows, order)?;
        Ok(task.iter().zip(right(&control, sizes[1], rows, order)?).map(|(task, control)| task - control).collect())
    })?;
    estimate.estimator = "selectivity";
    let rows: Vec<usize> = (0..labels.len()).collect();
    let control = right(&control, sizes[1], &rows, &rows)?;
    let control = control.iter().sum::<f64>() / control.len() as f64;
    let selectivity = estimate.value;
    Ok(Selectivity { task: control + selectivity, control, selectivity, estimate })
}
