//! Where is the minimum of a smooth function of many numbers?
//!
//! This is not taken from a crate because probes need two things that are easy inside the loop and hard around someone else's:
//! a start in coordinates with known curvature, and a look at held-out samples after each step.

use std::collections::VecDeque;

/// Remembered pairs of steps and gradient changes.
const MEMORY: usize = 12;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    /// The most steps.
    pub steps: usize,
    /// Stop once no component of the gradient is larger than this.
    pub tolerance: f64,
}

/// Minimises `f` by L-BFGS from `start` (Nocedal & Wright 2006, algorithm 7.5), with a bisecting line search. `f` writes its
/// gradient into its second argument. `watch` sees the point after each step and stops the search by returning false. Fastest
/// in coordinates whose curvature is near 1.
pub(crate) fn minimise(
    start: Vec<f64>,
    stop: Stop,
    mut f: impl FnMut(&[f64], &mut [f64]) -> f64,
    mut watch: impl FnMut(&[f64]) -> bool,
) -> Vec<f64> {
    let mut point = start;
    let mut gradient = vec![0.0; point.len()];
    let mut value = f(&point, &mut gradient);
    let mut memory: VecDeque<Pair> = VecDeque::new();
    for _ in 0..stop.steps {
        if gradient.iter().all(|g| g.abs() <= stop.tolerance) {
            break;
        }
        let direction = downhill(&memory, &gradient);
        let slope = dot(&direction, &gradient);
        let mut next_gradient = vec![0.0; point.len()];
        // Short enough for a sufficient descent, and long enough for the slope to rise, so that the curvature along the step is
        // positive (for a convex function it always is): halved and doubled until both hold.
        let (mut reach, mut short, mut long) = (1.0, 0.0, f64::INFINITY);
        let mut found = None;
        for _ in 0..30 {
            let next: Vec<f64> = point.iter().zip(&direction).map(|(p, d)| p + reach * d).collect();
            let next_value = f(&next, &mut next_gradient);
            if next_value <= value + 1e-4 * reach * slope {
                found = Some((next, next_value, next_gradient.clone()));
                if dot(&direction, &next_gradient) > slope {
                    break;
                }
                short = reach;
            } else {
                long = reach;
            }
            reach = if long.is_finite() { (short + long) / 2.0 } else { 2.0 * reach };
        }
        let Some((next, next_value, next_gradient)) = found else { break };
        let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
        let (step, change) = (difference(&next, &point), difference(&next_gradient, &gradient));
        let curvature = dot(&step, &change);
        if curvature > 1e-12 * (dot(&step, &step) * dot(&change, &change)).sqrt() {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            memory.push_back(Pair { step, change, curvature });
        }
        (point, gradient, value) = (next, next_gradient, next_value);
        if !watch(&point) {
            break;
        }
    }
    point
}

/// A step, the change of the gradient along it, and their product.
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    curvature: f64,
}

/// The quasi-Newton direction (two-loop recursion, algorithm 7.4).
fn downhill(memory: &VecDeque<Pair>, gradient: &[f64]) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut shares = vec![];
    for pair in memory.iter().rev() {
        let share = dot(&pair.step, &direction) / pair.curvature;
        direction.iter_mut().zip(&pair.change).for_each(|(d, y)| *d -= share * y);
        shares.push(share);
    }
    if let Some(last) = memory.back() {
        let scale = last.curvature / dot(&last.change, &last.change);
        direction.iter_mut().for_each(|d| *d *= scale);
    }
    for (pair, share) in memory.iter().zip(shares.into_iter().rev()) {
        let back = dot(&pair.change, &direction) / pair.curvature;
        direction.iter_mut().zip(&pair.step).for_each(|(d, s)| *d += (share - back) * s);
    }
    direction
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::{Stop, minimise};

    #[test]
    fn a_curved_valley_is_followed_to_its_end() {
        // Rosenbrock's function: the minimum, 0 at (1, 1), lies at the end of a bent, flat valley.
        let valley = |x: &[f64], gradient: &mut [f64]| {
            let across = x[1] - x[0] * x[0];
            gradient[0] = -400.0 * x[0] * across - 2.0 * (1.0 - x[0]);
            gradient[1] = 200.0 * across;
            100.0 * across * across + (1.0 - x[0]).powi(2)
        };
        let end = minimise(vec![-1.2, 1.0], Stop { steps: 200, tolerance: 1e-9 }, valley, |_| true);
        assert!((end[0] - 1.0).abs() < 1e-7 && (end[1] - 1.0).abs() < 1e-7, "{end:?}");
    }
}
