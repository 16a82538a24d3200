//! How do a layer's heads divide the work? Indices computed from the importance of each head for each task.

use ndarray::ArrayView2;

use crate::error::{Error, Result};

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
