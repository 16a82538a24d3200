//! How do a layer's heads divide the work? Indices computed from the importance of each head for each task.

use ndarray::{Array2, ArrayView2, Axis};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::stats::stream;

/// How heads divide tasks, and how much of that is chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Division {
    /// The [specialisation index](specialisation), 0 to 1.
    pub specialisation: f64,
    /// Its mean if, within each task, the heads' contributions are shuffled: what concentration alone gives. It is large
    /// where few heads do each task, whichever they are.
    pub concentration: f64,
    /// The difference: above 0 if different heads do different tasks more than chance has it, below 0 if the same heads
    /// do all of them.
    pub division: f64,
}

/// Below this many ways to shuffle, the mean over all of them is computed.
const ENUMERATED: f64 = 20_000.0;
/// The number of random shuffles otherwise.
const SHUFFLES: usize = 1000;

/// Do different heads do different tasks, beyond what chance gives? The specialisation index minus its mean under
/// shuffling heads within each task (over all shuffles if there are at most 20,000, otherwise over 1,000 random ones,
/// always the same). `None` where there is no index.
///
/// # Shapes
/// `phi`: `[head, task]`.
///
/// # Errors
/// If a value is not finite.
///
/// ```
/// use headscope::lab::trace::division;
/// use ndarray::array;
/// // One head does everything: maximal concentration, no division.
/// let one = array![[1.0, 1.0], [0.0, 0.0]];
/// assert!(division(one.view())?.unwrap().division < -0.4);
/// // Each head does a task of its own.
/// let each = array![[1.0, 0.0], [0.0, 1.0]];
/// assert!((division(each.view())?.unwrap().division - 0.5).abs() < 1e-12);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn division(phi: ArrayView2<f64>) -> Result<Option<Division>> {
    let Some(index) = specialisation(phi)? else { return Ok(None) };
    let positive = phi.mapv(|value| value.max(0.0));
    let p = &positive / positive.sum();
    // Shuffling changes the heads' totals only: I = sum p ln p - sum_h p_h ln p_h - sum_t p_t ln p_t.
    let information = |x: f64| if x > 0.0 { x * x.ln() } else { 0.0 };
    let fixed: f64 =
        p.iter().copied().map(information).sum::<f64>() - p.sum_axis(Axis(0)).into_iter().map(information).sum::<f64>();
    let most = (phi.nrows().min(phi.ncols()) as f64).ln();
    let of_totals = |totals: &[f64]| ((fixed - totals.iter().copied().map(information).sum::<f64>()) / most).max(0.0);
    let concentration = over_shuffles(&p, &of_totals);
    Ok(Some(Division { specialisation: index, concentration, division: index - concentration }))
}

/// The mean of a function of the heads' totals over shuffles of heads within each task.
fn over_shuffles(p: &Array2<f64>, each: &dyn Fn(&[f64]) -> f64) -> f64 {
    let (heads, tasks) = p.dim();
    let columns: Vec<Vec<f64>> = p.columns().into_iter().map(|column| column.to_vec()).collect();
    let orders = (1..=heads).map(|n| n as f64).product::<f64>();
    // The first task may keep its order: only the orders relative to it matter.
    if orders.powi(tasks as i32 - 1) <= ENUMERATED {
        let orders = permutations(heads);
        let (sum, n) = enumerate(&columns[1..], &orders, &columns[0], each);
        return sum / n;
    }
    let mut rng = stream(0, 0);
    let mut columns = columns;
    let mut sum = 0.0;
    for _ in 0..SHUFFLES {
        let mut totals = vec![0.0; heads];
        for column in &mut columns {
            column.shuffle(&mut rng);
            totals.iter_mut().zip(column.iter()).for_each(|(total, value)| *total += value);
        }
        sum += each(&totals);
    }
    sum / SHUFFLES as f64
}

/// The sum over all orders of the columns, and their number.
fn enumerate(columns: &[Vec<f64>], orders: &[Vec<usize>], totals: &[f64], each: &dyn Fn(&[f64]) -> f64) -> (f64, f64) {
    let Some((column, rest)) = columns.split_first() else { return (each(totals), 1.0) };
    orders.iter().fold((0.0, 0.0), |(sum, n), order| {
        let totals: Vec<f64> = totals.iter().zip(order).map(|(total, &place)| total + column[place]).collect();
        let (own, more) = enumerate(rest, orders, &totals, each);
        (sum + own, n + more)
    })
}

/// All orders of `0..n`.
fn permutations(n: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for number in 0..n {
        let with = |order: Vec<usize>| {
            (0..=order.len()).map(move |place| {
                let mut longer = order.clone();
                longer.insert(place, number);
                longer
            })
        };
        all = all.into_iter().flat_map(with).collect();
    }
    all
}

/// Do heads divide the tasks among themselves? 0 if every head contributes to all tasks in the same proportions, 1 if
/// each task is done by heads that do nothing else (with as many heads as tasks, one head per task).
///
/// The index is `I(h; t) / ln min(H, T)`, where I is the mutual information of head and task under
/// `p(h, t) = phi+ / sum phi+`, and phi+ is the positive part of the [Shapley
/// values](crate::intervene::shapley_values). It is `None` if no value is positive, or if there is only one head or one
/// task, since then there is nothing to divide. The index does not say how much work there is to divide: even an
/// untrained model has one.
///
/// # Shapes
/// `phi`: `[head, task]`.
///
/// # Errors
/// If a value is not finite.
///
/// ```
/// use headscope::lab::trace::specialisation;
/// use ndarray::array;
/// let each_its_own = array![[0.0, 2.0], [2.0, 0.0]];
/// let all_alike = array![[1.0, 2.0], [0.5, 1.0]];
/// assert!((specialisation(each_its_own.view())?.unwrap() - 1.0).abs() < 1e-12);
/// assert!(specialisation(all_alike.view())?.unwrap() < 1e-12);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn specialisation(phi: ArrayView2<f64>) -> Result<Option<f64>> {
    finite(phi.iter())?;
    let positive = phi.mapv(|value| value.max(0.0));
    let sum = positive.sum();
    let most = phi.nrows().min(phi.ncols());
    if sum <= 0.0 || most < 2 {
        return Ok(None);
    }
    let p = positive / sum;
    let (of_head, of_task) = (p.sum_axis(ndarray::Axis(1)), p.sum_axis(ndarray::Axis(0)));
    let share = |((head, task), &p): ((usize, usize), &f64)| match p > 0.0 {
        true => p * (p / (of_head[head] * of_task[task])).ln(),
        false => 0.0,
    };
    let information: f64 = p.indexed_iter().map(share).sum();
    Ok(Some((information / (most as f64).ln()).clamp(0.0, 1.0)))
}

/// How many heads contribute? The participation ratio `(sum phi)^2 / sum phi^2`: 1 if one head does everything, H if
/// all H heads contribute equally; below 1 only if some values are negative. `None` if all are 0.
///
/// # Errors
/// If a value is not finite.
///
/// ```
/// use headscope::lab::trace::participation;
/// assert_eq!(participation(&[0.0, 3.0, 0.0])?, Some(1.0));
/// assert_eq!(participation(&[2.0, 2.0, 2.0])?, Some(3.0));
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn participation(phi: &[f64]) -> Result<Option<f64>> {
    finite(phi.iter())?;
    let largest = phi.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    if largest == 0.0 {
        return Ok(None);
    }
    // Relative to the largest value, so that squares neither overflow nor underflow.
    let (sum, squares) = phi.iter().fold((0.0, 0.0), |(sum, squares), value| {
        let value = value / largest;
        (sum + value, squares + value * value)
    });
    Ok(Some(sum * sum / squares))
}

fn finite<'a>(values: impl Iterator<Item = &'a f64>) -> Result<()> {
    match values.enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, &found)) => Err(Error::NotFinite { at: "phi".into(), index, found }),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ndarray::array;
    use rand::Rng;

    /// Shuffled by hand: both orders of the second task.
    #[test]
    fn concentration_is_the_mean_over_all_shuffles() {
        let phi = array![[3.0, 1.0], [1.0, 0.0]];
        let swapped = array![[3.0, 0.0], [1.0, 1.0]];
        let own = specialisation(phi.view()).unwrap().unwrap();
        let other = specialisation(swapped.view()).unwrap().unwrap();
        let found = division(phi.view()).unwrap().unwrap();
        assert!((found.concentration - (own + other) / 2.0).abs() < 1e-12, "{found:?}");
        assert!((found.division - (own - other) / 2.0).abs() < 1e-12, "{found:?}");
    }

    /// Random contributions divide nothing on average, however concentrated they are, for few heads (all shuffles) and
    /// many (random ones): within four standard errors.
    #[test]
    fn random_contributions_do_not_divide() {
        for (heads, tasks) in [(4, 4), (8, 5), (3, 2)] {
            let mut rng = stream(7, heads);
            let draw = |_| {
                let phi = Array2::from_shape_simple_fn((heads, tasks), || rng.random::<f64>().powi(6));
                division(phi.view()).unwrap().unwrap()
            };
            let found: Vec<Division> = (0..300).map(draw).collect();
            let d: Vec<f64> = found.iter().map(|found| found.division).collect();
            let mean = d.iter().sum::<f64>() / d.len() as f64;
            let error = (d.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (d.len() as f64).powi(2)).sqrt();
            assert!(mean.abs() < 4.0 * error, "{heads} heads: {mean} +- {error}");
            let concentrated = found.iter().map(|found| found.concentration).sum::<f64>() / found.len() as f64;
            assert!(concentrated > 0.1, "concentrated, and yet no division: {concentrated}");
        }
    }

    #[test]
    fn heads_with_tasks_of_their_own_divide_and_a_single_busy_head_does_the_opposite() {
        let each = Array2::eye(4);
        let found = division(each.view()).unwrap().unwrap();
        assert!(found.division > 0.3 && (found.specialisation - 1.0).abs() < 1e-12, "{found:?}");
        let one = Array2::from_shape_fn((4, 4), |(head, _)| if head == 0 { 1.0 } else { 0.0 });
        let found = division(one.view()).unwrap().unwrap();
        assert!(found.division < -0.4 && found.specialisation == 0.0, "{found:?}");
        let alike = Array2::ones((4, 4));
        let found = division(alike.view()).unwrap().unwrap();
        assert!(found.division.abs() < 1e-12 && found.concentration.abs() < 1e-12, "{found:?}");
        assert_eq!(division(Array2::zeros((4, 4)).view()).unwrap(), None);
    }
}
