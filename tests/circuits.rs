//! What must hold of circuits: the algebra of factored products, ranks, composition, subspaces; then golden values, and
//! the known circuit of GPT-2 small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, assert_near, configs, fixture, load, random, some_tokens};
use headscope::Error;
use headscope::circuits::{
    Circuit, Circuits, Composition, Dendrogram, Factored, HeadWeights, Linkage, Measure, Null, NullOptions, Offset,
    Ranks, Subspace, composition, copying_score, diagonal_ranks, null_spectra, random_frame, random_overlap,
    top_k_accuracy,
};
use headscope::heads::{CircuitOptions, Vocabulary};
use headscope::model::{Model, Plan, Position, Site};
use ndarray::{Array1, Array2, Axis, array, s};
use ndarray_linalg::{Inverse, SVD};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Kind, Tensor};

const ALGEBRA: Tol = Tol::Model(Kind::Double);
const RAW: CircuitOptions = CircuitOptions { fold_norms: false, centre_writing: false };

fn normal(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, columns), || StandardNormal.sample(&mut rng))
}

/// A product whose factors are well-conditioned, nearly of lower rank, or exactly so.
fn product(m: usize, k: usize, n: usize, kind: usize, seed: u64) -> Factored {
    let (mut left, right) = (normal(m, k, seed), normal(k, n, seed + 1));
    if kind > 0 && k > 1 {
        let copy = left.column(0).to_owned();
        let tiny = if kind == 1 { 1e-7 } else { 0.0 };
        let last = left.column(k - 1).to_owned() * tiny;
        left.column_mut(k - 1).assign(&(copy + last));
    }
    Factored::new(left, right).unwrap()
}

fn dense(product: &Factored) -> Array2<f64> {
    product.left().dot(&product.right())
}

fn norm(a: &Array2<f64>) -> f64 {
    a.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[track_caller]
fn assert_same(what: &str, found: &Array2<f64>, expected: &Array2<f64>) {
    assert_eq!(found.dim(), expected.dim(), "{what}: shapes");
    let tensor = |a: &Array2<f64>| Tensor::from_slice(&a.iter().copied().collect::<Vec<_>>());
    assert_close(what, &tensor(found), &tensor(expected), ALGEBRA);
}

fn square(a: &Array2<f64>) -> Array1<f64> {
    a.svd(false, false).unwrap().1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(25), ..ProptestConfig::default() })]

    /// Invariant 25: the SVD through QR is the dense one, of d_head components at most; whatever the factors' condition.
    #[test]
    fn svd_of_factors_is_the_dense_one(m in 1usize..14, k in 1usize..9, n in 1usize..14, kind in 0usize..3, seed in 0u64..999) {
        let product = product(m, k, n, kind, seed);
        let (svd, whole) = (product.svd().unwrap(), dense(&product));
        let rank = m.min(k).min(n);
        prop_assert_eq!((svd.u.dim(), svd.sigma.len(), svd.v.dim()), ((m, rank), rank, (n, rank)));
        let expected = square(&whole);
        for i in 0..m.min(n) {
            assert_near("sigma", svd.sigma.get(i).copied().unwrap_or(0.0), expected[i], ALGEBRA);
        }
        for (i, &value) in product.singular_values().unwrap().iter().enumerate() {
            assert_near("singular value", value, expected[i], ALGEBRA);
        }
        assert_same("U S V^T", &(&svd.u * &svd.sigma).dot(&svd.v.t()), &whole);
        assert_same("U^T U", &svd.u.t().dot(&svd.u), &Array2::eye(rank));
        assert_same("V^T V", &svd.v.t().dot(&svd.v), &Array2::eye(rank));
    }

    /// Every operation on factors is the one on the dense product.
    #[test]
    fn algebra_of_factors(m in 1usize..9, k in 1usize..6, n in 1usize..9, p in 1usize..6, kind in 0usize..3, seed in 0u64..999) {
        let (a, b) = (product(m, k, n, kind, seed), product(n, p, m, 0, seed + 10));
        let (da, db) = (dense(&a), dense(&b));
        assert_same("transpose", &dense(&a.transpose()), &da.t().to_owned());
        let times = a.times(&b).unwrap();
        prop_assert_eq!(times.width(), k.min(p));
        assert_same("product", &dense(&times), &da.dot(&db));
        assert_same("sum", &dense(&a.plus(&b.transpose()).unwrap()), &(&da + &db.t()));
        assert_same("scaled", &dense(&a.scaled(-2.5).unwrap()), &(&da * -2.5));
        assert_near("trace", times.trace().unwrap(), da.dot(&db).diag().sum(), ALGEBRA);
        assert_near("norm", a.norm().unwrap(), norm(&da), ALGEBRA);
        assert_near("what cancels", a.plus(&a.scaled(-1.0).unwrap()).unwrap().norm().unwrap(), 0.0, ALGEBRA);
        assert_near("inner product", a.dot(&b.transpose()).unwrap(), (&da * &db.t()).sum(), ALGEBRA);
        let x = normal(3, m, seed + 20);
        assert_same("x A B", &a.apply(&x.view()).unwrap(), &x.dot(&da));
        assert_same("rows", &a.rows(m / 2..m).unwrap(), &da.slice(s![m / 2.., ..]).to_owned());
        assert_same("columns", &a.columns(0..n).unwrap(), &da);
        assert_same("row", &a.row(m - 1).unwrap().insert_axis(Axis(0)), &da.slice(s![m - 1.., ..]).to_owned());
        assert_same("column", &a.column(n - 1).unwrap().insert_axis(Axis(1)), &da.slice(s![.., n - 1..]).to_owned());
    }

    /// Invariant 26: Eckart-Young, in both norms.
    #[test]
    fn truncation_is_best(m in 2usize..12, k in 2usize..8, n in 2usize..12, rank in 1usize..6, seed in 0u64..999) {
        let product = product(m, k, n, 0, seed);
        let sigma = product.singular_values().unwrap();
        let error = &dense(&product) - &dense(&product.truncated(rank).unwrap());
        let rest: f64 = sigma.iter().skip(rank).map(|s| s * s).sum();
        assert_near("Frobenius", norm(&error).powi(2), rest, ALGEBRA);
        assert_near("spectral", square(&error)[0], sigma.get(rank).copied().unwrap_or(0.0), ALGEBRA);
    }

    /// Invariant 27: the eigenvalues that are not zero are those of the factors in the other order.
    #[test]
    fn eigenvalues_of_either_order(n in 1usize..9, k in 1usize..9, seed in 0u64..999) {
        let (left, right) = (normal(n, k, seed), normal(k, n, seed + 1));
        let values = Factored::new(left.clone(), right.clone()).unwrap().eigenvalues().unwrap();
        let other = Factored::new(right.clone(), left.clone()).unwrap();
        prop_assert_eq!(values.len(), n.min(k));
        // Power sums determine the values: sum lambda^p = tr (AB)^p.
        let whole = left.dot(&right);
        let mut power = Array2::eye(n);
        for exponent in 1..=n.min(k) as i32 {
            power = power.dot(&whole);
            let scale = values.iter().map(|v| v.norm().powi(exponent)).sum::<f64>().max(1.0);
            for values in [&values, &other.eigenvalues().unwrap()] {
                let sum: f64 = values.iter().map(|v| v.powi(exponent).re).sum();
                assert_near("power sum", sum / scale, power.diag().sum() / scale, ALGEBRA);
            }
        }
    }

    /// Invariant 28: ranks lie between 1 and the rank, and are k for k equal singular values.
    #[test]
    fn ranks_are_ranks(sigma in prop::collection::vec(1e-3f64..1e3, 1..12), zeros in 0usize..4, value in 1e-200f64..1e200) {
        let k = sigma.len();
        let named = |sigma: &[f64]| { let Ranks { effective, stable, participation } = Ranks::of(sigma).unwrap(); [effective, stable, participation] };
        for rank in named(&[sigma, vec![0.0; zeros]].concat()) {
            prop_assert!((1.0 - Tol::Number.bound()..=k as f64 * (1.0 + Tol::Number.bound())).contains(&rank), "{rank} of {k}");
        }
        for rank in named(&[vec![value; k], vec![0.0; zeros]].concat()) {
            assert_near("equal values", rank, k as f64, ALGEBRA);
        }
    }

    /// Invariant 30: composition is what the dense matrices say, lies between 0 and 1, and turning the residual stream
    /// changes neither it nor its z-score.
    #[test]
    fn composition_is_invariant_to_rotation(d in 2usize..150, k in 1usize..4, n in 1usize..4, seed in 0u64..99) {
        let k = k.min(d);
        let heads = |offset: u64| (0..n as u64).map(|i| product(d, k, d, 0, seed + offset + 2 * i)).collect::<Vec<_>>();
        let (writers, readers) = (heads(0), heads(1000));
        let scores = composition(&writers, &readers, |_| n).unwrap();
        let turn = random_frame(d, d, seed).unwrap();
        let turned = |products: &[Factored]| products.iter().map(|p| {
            Factored::new(turn.t().dot(&p.left()), p.right().dot(&turn)).unwrap()
        }).collect::<Vec<_>>();
        let again = composition(&turned(&writers), &turned(&readers), |_| n).unwrap();
        for ((i, j), &value) in scores.value.indexed_iter() {
            prop_assert!((0.0..=1.0).contains(&value));
            let (x, y) = (dense(&writers[i]), dense(&readers[j]));
            assert_near("dense", value, norm(&x.dot(&y)) / norm(&x) / norm(&y), ALGEBRA);
            assert_near("turned", again.value[[i, j]], value, ALGEBRA);
            let (z, turned) = (scores.z_score[[i, j]], again.z_score[[i, j]]);
            // A difference in standard deviations, of which each is the root of a difference.
            let deviation = (value * value - 1.0 / d as f64) / z;
            assert_near("turned z-score", turned, z, Tol::Conditioned(deviation.powi(-2)));
        }
    }

    /// Principal angles: a rotation of a plane by an angle has that angle, however small; a subspace of another has none.
    #[test]
    fn principal_angles(angle in 1e-9f64..1.57, d in 4usize..12, seed in 0u64..99) {
        let frame = random_frame(d, 4, seed).unwrap();
        let (a, b) = (frame.column(0), frame.column(1));
        let turned = &a * angle.cos() + &b * angle.sin();
        let plane = Subspace::span(&frame.slice(s![.., ..;2])).unwrap(); // directions 0 and 2
        let mut basis = frame.slice(s![.., ..;2]).to_owned();
        basis.column_mut(0).assign(&turned);
        let other = Subspace::span(&basis.dot(&normal(2, 2, seed)).view()).unwrap();
        let angles = plane.angles(&other).unwrap();
        // However small an angle, its digits are kept: it comes from its sine.
        prop_assert!(angles[0] < Tol::Number.bound(), "{:?} for {}", angles, angle);
        prop_assert!((angles[1] - angle).abs() < Tol::Number.bound() * angle.max(0.01), "{:?} for {}", angles, angle);
        assert_near("overlap", plane.overlap(&other).unwrap(), (1.0 + angle.cos().powi(2)) / 2.0, ALGEBRA);
        let part = Subspace::span(&frame.slice(s![.., ..1])).unwrap();
        assert_near("within", part.overlap(&plane).unwrap(), 1.0, ALGEBRA);
    }

    /// Invariants 17 and 18: a change of basis within a head changes neither its circuits nor its output.
    #[test]
    fn gauge_freedom(config in 0usize..5, seed in 0u64..99, layer in 0usize..3, head in 0usize..4) {
        let configs = configs();
        let model = random(&configs[config], seed);
        let tokens = some_tokens(2, 6, model.config().vocab, seed as usize);
        let of = |model: &Model| model.run(&tokens, &Plan::new().tap(Site::ResidPost(layer))).unwrap().get(Site::ResidPost(layer)).unwrap().shallow_clone();
        let before = model.circuits(&CircuitOptions::default()).unwrap();
        let clean = of(&model);
        change_basis(&model, layer, head, seed);
        let after = model.circuits(&CircuitOptions::default()).unwrap();
        assert_close("output", &of(&model), &clean, ALGEBRA);
        for head in 0..model.config().n_heads {
            let (a, b) = (before.head(layer, head).unwrap(), after.head(layer, head).unwrap());
            for offset in [Offset::At(0), Offset::At(5), Offset::Mean(7)] {
                assert_same("QK", &dense(&b.qk(offset).unwrap()), &dense(&a.qk(offset).unwrap()));
            }
            assert_same("OV", &dense(&b.ov().unwrap()), &dense(&a.ov().unwrap()));
            assert_same("key bias", &b.key_bias(Offset::At(2)).unwrap().insert_axis(Axis(0)), &a.key_bias(Offset::At(2)).unwrap().insert_axis(Axis(0)));
        }
    }

    /// The circuits give the model's own scores and outputs: at every offset, with biases, norms and shared keys.
    #[test]
    fn circuits_are_what_the_model_does(config in 0usize..5, seed in 0u64..99, layer in 0usize..3, head in 0usize..4) {
        let configs = configs();
        let model = random(&configs[config], seed);
        let length = 6;
        let tokens = some_tokens(1, length, model.config().vocab, seed as usize);
        let mut sites = vec![Site::ResidPre(layer), Site::Scores(layer), Site::Pattern(layer), Site::Result(layer)];
        let pre = model.config().norm_place == headscope::model::NormPlace::Pre && Site::Ln1Scale(layer).check(model.config()).is_ok();
        sites.extend(pre.then_some(Site::Ln1Scale(layer)));
        let run = model.run(&tokens, &Plan::new().taps(sites)).unwrap();
        let read = |site: Site| run.get(site).unwrap().squeeze_dim(0);
        let matrix = |t: Tensor| Array2::from_shape_vec((t.size()[0] as usize, t.size()[1] as usize), Vec::<f64>::try_from(t.contiguous().flatten(0, -1)).unwrap()).unwrap();
        let resid = read(Site::ResidPre(layer));
        // What the folded weights read: the stream divided by its scale; the weights take off the mean themselves.
        let x = matrix(if pre { resid / read(Site::Ln1Scale(layer)).view([length as i64, 1]) } else { resid });
        let options = CircuitOptions { centre_writing: false, ..CircuitOptions::default() };
        let circuits = model.circuits(&options).unwrap();
        let weights = circuits.head(layer, head).unwrap();
        let (scores, pattern) = (matrix(read(Site::Scores(layer)).get(head as i64)), matrix(read(Site::Pattern(layer)).get(head as i64)));
        let with_one = ndarray::concatenate![Axis(1), x, Array2::ones((length, 1))];
        for query in 0..length {
            for key in 0..if model.config().causal { query + 1 } else { length } {
                let qk = weights.qk_with_bias(Offset::At(query as i64 - key as i64)).unwrap();
                let score = qk.apply(&with_one.slice(s![query..=query, ..])).unwrap().dot(&with_one.row(key))[0];
                let tol = if weights.rotary.is_some() { Tol::Tables { layers: 0, positions: length } } else { ALGEBRA };
                assert_near("score", score / (model.config().d_head as f64).sqrt(), scores[[query, key]], tol);
            }
        }
        let moved = weights.ov().unwrap().apply(&pattern.dot(&x).view()).unwrap() + &weights.ov_bias();
        assert_same("result", &moved, &matrix(read(Site::Result(layer)).select(1, head as i64)));
    }
}

/// `W_Q <- W_Q M, W_K <- W_K M^-T, W_V <- W_V N, W_O <- N^-1 W_O` of a key/value head and all its query heads, biases likewise.
/// With rotary positions M turns and stretches each pair of coordinates, which commutes with the rotations.
fn change_basis(model: &Model, layer: usize, head: usize, seed: u64) {
    let config = model.config();
    let (k, group) = (config.d_head, config.n_heads / config.n_kv_heads);
    let kv = head / group;
    let mut m = normal(k, k, seed + 1) * 0.3 + Array2::<f64>::eye(k) * 2.0;
    if matches!(config.position, Position::Rotary { .. }) {
        m = Array2::zeros((k, k));
        for i in 0..k / 2 {
            let (a, b, j) = (1.5 + 0.1 * i as f64, 0.4 - 0.2 * i as f64, i + k / 2);
            (m[[i, i]], m[[j, j]], m[[i, j]], m[[j, i]]) = (a, a, b, -b);
        }
    }
    let n = normal(k, k, seed + 2) * 0.3 + Array2::<f64>::eye(k) * 2.0;
    let tensor =
        |a: &Array2<f64>| Tensor::from_slice(&a.iter().copied().collect::<Vec<_>>()).view([k as i64, k as i64]);
    let (m, m_dual) = (tensor(&m), tensor(&m.inv().unwrap().t().to_owned()));
    let (n, n_inverse) = (tensor(&n), tensor(&n.inv().unwrap()));
    let parameters = model.parameters();
    let columns = |name: &str, head: usize, by: &Tensor| {
        if let Some((_, t)) = parameters.iter().find(|(found, _)| *found == format!("blocks.{layer}.{name}")) {
            let mut part = t.narrow(-1, (head * k) as i64, k as i64);
            let new = if part.dim() == 1 { part.unsqueeze(0).matmul(by).squeeze_dim(0) } else { part.matmul(by) };
            part.copy_(&new);
        }
    };
    for query in kv * group..(kv + 1) * group {
        ["w_q", "b_q"].iter().for_each(|name| columns(name, query, &m));
        let (_, w_o) = parameters.iter().find(|(found, _)| *found == format!("blocks.{layer}.w_o")).unwrap();
        let mut rows = w_o.narrow(0, (query * k) as i64, k as i64);
        let new = n_inverse.matmul(&rows);
        rows.copy_(&new);
    }
    ["w_k", "b_k"].iter().for_each(|name| columns(name, kv, &m_dual));
    ["w_v", "b_v"].iter().for_each(|name| columns(name, kv, &n));
}

/// Invariant 29, and the variance behind the z-scores: mean and variance over random rotations.
#[test]
fn rotations_have_the_moments_that_are_claimed() {
    let (d, draws) = (9, 20_000);
    let (a, b) = (normal(3, d, 1), normal(d, 2, 2));
    let product = |left: Array2<f64>, right: Array2<f64>| Factored::new(left, right).unwrap();
    let (x, y) = (product(Array2::eye(3), a.clone()), product(b.clone(), Array2::eye(2)));
    let sizes = norm(&a).powi(2) * norm(&b).powi(2);
    let squares: Vec<f64> =
        (0..draws).map(|seed| norm(&a.dot(&random_frame(d, d, seed).unwrap()).dot(&b)).powi(2) / sizes).collect();
    let mean = squares.iter().sum::<f64>() / draws as f64;
    let deviation = (squares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / draws as f64).sqrt();
    // The library's mean and deviation from one score: z = (C^2 - 1/d) / deviation.
    let scores = composition(&[x], &[y], |_| 1).unwrap();
    let (value, z) = (scores.value[[0, 0]], scores.z_score[[0, 0]]);
    assert_eq!(scores.random, (1.0 / d as f64).sqrt());
    let claimed = (value * value - 1.0 / d as f64) / z;
    assert!((mean * d as f64 - 1.0).abs() < 4.0 * deviation * d as f64 / (draws as f64).sqrt(), "mean {mean}");
    assert!((deviation / claimed - 1.0).abs() < 0.03, "deviation {deviation}, claimed {claimed}");
    let (expected, spread) = random_overlap(3, 2, d);
    let overlaps: Vec<f64> = (0..draws)
        .map(|seed| {
            let frame = random_frame(d, d, seed).unwrap();
            norm(&frame.slice(s![..3, ..2]).to_owned()).powi(2) / 2.0
        })
        .collect();
    let mean = overlaps.iter().sum::<f64>() / draws as f64;
    let deviation = (overlaps.iter().map(|o| (o - mean).powi(2)).sum::<f64>() / draws as f64).sqrt();
    assert!((mean / expected - 1.0).abs() < 0.01, "{mean} for {expected}");
    assert!((deviation / spread - 1.0).abs() < 0.03, "{deviation} for {spread}");
}

/// Invariant 38: +1 for a full OV circuit that is positive semidefinite, -1 for its negative.
#[test]
fn copying_scores_of_known_circuits() {
    let w = normal(20, 4, 3);
    let copies = Factored::new(w.clone(), w.t().to_owned()).unwrap();
    assert_near("copies", copying_score(&copies).unwrap(), 1.0, ALGEBRA);
    assert_near("the opposite", copying_score(&copies.scaled(-1.0).unwrap()).unwrap(), -1.0, ALGEBRA);
    let zero = Factored::new(Array2::zeros((5, 2)), Array2::zeros((2, 5))).unwrap();
    assert!(copying_score(&zero).unwrap().is_nan());
    // A rotation by a quarter turn has eigenvalues +-i.
    let turn = Factored::new(Array2::eye(2), array![[0.0, 1.0], [-1.0, 0.0]]).unwrap();
    assert_near("a turn", copying_score(&turn).unwrap(), 0.0, ALGEBRA);
    // Rows favour 1, 1 and 2: the second and the third token copy themselves.
    let circuit = Factored::new(Array2::eye(3), array![[1.0, 3.0, 0.0], [0.0, 1.0, 0.5], [2.0, 1.0, 2.0]]).unwrap();
    let ranks = diagonal_ranks(&circuit).unwrap();
    assert_eq!(ranks, [1, 0, 0]);
    assert_near("top 1", top_k_accuracy(&ranks, 1).unwrap(), 2.0 / 3.0, ALGEBRA);
    assert_near("top 2", top_k_accuracy(&ranks, 2).unwrap(), 1.0, ALGEBRA);
}

/// Nearly equal singular values come in blocks, whose subspaces agree where their vectors do not.
#[test]
fn blocks_are_compared_as_subspaces() {
    let (u, v) = (random_frame(10, 4, 1).unwrap(), random_frame(12, 4, 2).unwrap());
    let with =
        |sigma: [f64; 4]| Factored::new(&u * &Array1::from(sigma.to_vec()), v.t().to_owned()).unwrap().svd().unwrap();
    let (a, b) = (with([3.0, 2.001, 2.0, 1.0]), with([3.0, 2.0, 2.001, 1.0])); // the middle two change places
    assert_eq!(a.blocks(0.01).unwrap(), [0..1, 1..3, 3..4]);
    let alone = a.compare(&b, 0.0).unwrap();
    assert_near("others", alone[1].left.max(alone[1].right), 0.0, Tol::Conditioned(2.0 / 0.001)); // by their gap
    for block in a.compare(&b, 0.01).unwrap() {
        assert_near("block", block.left.min(block.right), 1.0, ALGEBRA);
    }
    assert!(a.blocks(1.0).is_err() && a.left_block(2..9).is_err());
}

#[test]
fn null_spectra_know_structure() {
    let (loud, k) = (Factored::new(normal(40, 4, 5), normal(4, 40, 6)).unwrap(), 4);
    let options = NullOptions::default();
    for null in [Null::Gaussian, Null::Shuffled] {
        let spectra = null_spectra(&loud, &NullOptions { null, ..options }).unwrap();
        assert_eq!(spectra.dim(), (20, k));
        for row in spectra.rows() {
            assert_near("norm", row.iter().map(|s| s * s).sum::<f64>().sqrt(), loud.norm().unwrap(), ALGEBRA);
        }
        assert_eq!(spectra, null_spectra(&loud, &NullOptions { null, ..options }).unwrap());
        assert_ne!(spectra, null_spectra(&loud, &NullOptions { null, seed: 1, ..options }).unwrap());
    }
    assert!(null_spectra(&loud, &NullOptions { draws: 1, ..options }).is_err());
    // Random weights look like random weights; one loud direction does not.
    let model = random(&configs()[0], 4);
    let table =
        model.circuits(&RAW).unwrap().svd(Circuit::Qk(Offset::At(0)), &NullOptions { draws: 200, ..options }).unwrap();
    let worst = table.f64("z_score").unwrap().into_iter().filter(|z| z.is_finite()).map(f64::abs).fold(0.0, f64::max);
    assert!(worst < 6.0, "{worst}");
    let _ = model.w_q(1).unwrap().get(2).select(1, 0).g_mul_scalar_(30.0);
    let table =
        model.circuits(&RAW).unwrap().svd(Circuit::Qk(Offset::At(0)), &NullOptions { draws: 200, ..options }).unwrap();
    let top = table.largest("z_score", 1).unwrap();
    assert_eq!(
        (top.f64("layer").unwrap(), top.f64("head").unwrap(), top.f64("component").unwrap()),
        (vec![1.0], vec![2.0], vec![0.0])
    );
}

#[test]
fn a_dendrogram_joins_the_nearest_first() {
    // scipy.cluster.hierarchy.linkage(squareform(D), 'average') and cophenet of it.
    let distances = array![[0.0, 2.0, 6.0, 10.0], [2.0, 0.0, 5.0, 9.0], [6.0, 5.0, 0.0, 4.0], [10.0, 9.0, 4.0, 0.0]];
    let tree = Dendrogram::new(&distances.view(), Linkage::Average).unwrap();
    let heights: Vec<f64> = tree.merges().iter().map(|merge| merge.height).collect();
    assert_eq!(heights, [2.0, 4.0, 7.5]);
    assert_eq!(tree.cut(3.0), [0, 0, 1, 2]);
    assert_eq!(tree.cut(5.0), [0, 0, 1, 1]);
    assert_eq!(tree.order(), [0, 1, 2, 3]);
    assert_eq!(tree.cophenetic()[[0, 3]], 7.5);
    for (linkage, last) in [(Linkage::Single, 5.0), (Linkage::Complete, 10.0)] {
        assert_eq!(Dendrogram::new(&distances.view(), linkage).unwrap().merges()[2].height, last);
    }
    assert_eq!(Dendrogram::new(&array![[0.0]].view(), Linkage::Average).unwrap().newick(&["a"]).unwrap(), "a;");
    assert!(Dendrogram::new(&array![[0.0, f64::NAN], [0.0, 0.0]].view(), Linkage::Average).is_err());
    assert!(Dendrogram::new(&array![[0.0, -1.0], [0.0, 0.0]].view(), Linkage::Average).is_err());
}

/// Similarity of all heads is that of each pair; a head is like itself; copies of a head are found.
#[test]
fn similarities_are_those_of_pairs() {
    for config in &configs()[..2] {
        let model = random(config, 7);
        let circuits = model.circuits(&CircuitOptions::default()).unwrap();
        let heads = circuits.heads();
        for measure in Measure::ALL {
            let all = circuits.similarity(measure, Offset::At(0)).unwrap();
            for ((i, j), &value) in all.value.indexed_iter() {
                let (a, b) = (&heads[i], &heads[j]);
                let span = |head: &HeadWeights| match measure {
                    Measure::QueryOverlap => Subspace::span(&head.w_q.view()).unwrap(),
                    Measure::KeyOverlap => Subspace::span(&head.w_k.view()).unwrap(),
                    Measure::ValueOverlap => Subspace::span(&head.w_v.view()).unwrap(),
                    _ => Subspace::span(&head.w_o.t()).unwrap(),
                };
                let expected = match measure {
                    Measure::QkCosine => a.qk(Offset::At(0)).unwrap().cosine(&b.qk(Offset::At(0)).unwrap()).unwrap(),
                    Measure::OvCosine => a.ov().unwrap().cosine(&b.ov().unwrap()).unwrap(),
                    _ => span(a).overlap(&span(b)).unwrap(),
                };
                assert_near(measure.name(), value, expected, ALGEBRA);
                if i == j {
                    assert_near("itself", value, 1.0, ALGEBRA);
                }
            }
            assert_eq!(all.dendrogram(Linkage::Average).unwrap().merges().len(), heads.len() - 1);
        }
        let table = circuits.redundancy().unwrap();
        assert_eq!(table.len(), 4 * config.n_layers);
    }
}

/// The residual stream's circuits do not hear a head that is dead: missing, not nonsense.
#[test]
fn dead_heads_are_missing() {
    let model = random(&configs()[0], 3);
    let _ = model.w_o(0).unwrap().get(1).zero_();
    let _ = model.w_q(2).unwrap().get(0).zero_();
    let circuits = model.circuits(&CircuitOptions::default()).unwrap();
    let scores = circuits.composition_scores(Composition::K, Offset::At(0)).unwrap();
    assert!(scores.value[[1, 4]].is_nan() && scores.z_score[[1, 4]].is_nan() && scores.value[[0, 8]].is_nan());
    assert!(scores.value[[0, 4]].is_finite() && scores.selective()[[0, 4]].is_finite());
    let table = circuits.composition(Composition::K, Offset::At(0)).unwrap();
    assert_eq!(table.f64("value").unwrap().iter().filter(|v| v.is_nan()).count(), 8 + 8 - 1);
    assert!(circuits.similarity(Measure::WriteOverlap, Offset::At(0)).unwrap().value[[1, 2]].is_nan());
    assert!(circuits.similarities(Offset::At(0)).unwrap().len() == 66 * 6);
    assert!(circuits.svd(Circuit::Ov, &NullOptions::default()).is_ok());
    assert!(circuits.head(2, 0).unwrap().position_free_share(4).unwrap().is_nan());
}

#[test]
fn bad_input_is_an_error() {
    let nan = Factored::new(array![[1.0], [f64::NAN]], array![[1.0]]);
    assert!(matches!(nan, Err(Error::NotFinite { index: 1, .. })));
    assert!(matches!(Factored::new(Array2::zeros((2, 3)), Array2::zeros((2, 2))), Err(Error::Shape { .. })));
    assert!(Factored::new(Array2::zeros((0, 3)), Array2::zeros((3, 2))).is_err());
    let wide = product(2, 1, 3, 0, 1);
    assert!(wide.trace().is_err() && wide.eigenvalues().is_err() && wide.times(&wide).is_err());
    assert!(wide.plus(&wide.transpose()).is_err() && wide.apply(&array![[1.0]].view()).is_err());
    assert!(wide.rows(1..3).is_err() && wide.column(usize::MAX).is_err() && wide.truncated(0).is_err());
    assert!(wide.scaled(f64::INFINITY).is_err() && diagonal_ranks(&wide).is_err());
    assert!(Ranks::of(&[]).is_err() && Ranks::of(&[0.0]).is_err() && Ranks::of(&[f64::NAN]).is_err());
    assert!(Ranks::of(&[1.0, -1.0]).is_err() && random_frame(2, 3, 0).is_err());
    assert!(Subspace::span(&Array2::zeros((3, 2)).view()).is_err());
    let one = std::slice::from_ref(&wide);
    assert!(composition(one, one, |_| 1).is_err());
    assert!(Circuits::new(vec![], headscope::table::Provenance::default()).is_err());
    let circuits = random(&configs()[0], 1).circuits(&RAW).unwrap();
    assert!(matches!(circuits.head(9, 0), Err(Error::OutOfRange { axis: "layer", .. })));
    assert!(circuits.head(0, 0).unwrap().qk(Offset::Mean(0)).is_err());
}

fn golden(name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name).join("golden-circuits.json")).unwrap()).unwrap()
}

/// Composition, spectra and copying of every head as TransformerLens (tiny-gpt2) and numpy have them.
#[test]
fn golden_values() {
    let folded = CircuitOptions::default();
    let cases = [
        ("tiny-gpt2", "raw", RAW, 0),
        ("tiny-gpt2", "folded", folded, 0),
        ("tiny-llama", "folded", folded, 0),
        ("tiny-llama", "offset", folded, 3),
    ];
    for (name, which, options, offset) in cases {
        let (model, golden) = (load(name, Kind::Double), &golden(name)[which]);
        let circuits = model.circuits(&options).unwrap();
        let (n, offset) = (model.config().n_heads, Offset::At(offset));
        for kind in [Composition::Q, Composition::K, Composition::V] {
            let scores = circuits.composition_scores(kind, offset).unwrap().value;
            for ((i, j), &found) in scores.indexed_iter() {
                let expected = golden[kind.name()][i / n][i % n][j / n][j % n].as_f64().unwrap();
                let found = if i / n < j / n {
                    found
                } else {
                    assert!(found.is_nan());
                    0.0
                };
                assert_near(&format!("{name} {which} {} {i} {j}", kind.name()), found, expected, ALGEBRA);
            }
        }
        let copying = model.copying(&[1], &options).unwrap();
        for (i, head) in circuits.heads().iter().enumerate() {
            for (key, product) in [("qk", head.qk(offset).unwrap()), ("ov", head.ov().unwrap())] {
                for (c, &sigma) in product.singular_values().unwrap().iter().enumerate() {
                    assert_near(key, sigma, golden[key][i / n][i % n][c].as_f64().unwrap(), ALGEBRA);
                }
            }
            for (row, key) in [(2 * i, "copying_score"), (2 * i + 1, "top_1_accuracy")] {
                assert_near(
                    key,
                    copying.f64("value").unwrap()[row],
                    golden[key][i / n][i % n].as_f64().unwrap(),
                    ALGEBRA,
                );
            }
        }
    }
}

fn parameter(model: &Model, name: &str) -> Tensor {
    model.parameters().into_iter().find(|(found, _)| found == name).unwrap().1.shallow_clone()
}

/// Singular directions are read through the embedding and the unembedding as the dense matrices say.
#[test]
fn directions_are_read_as_tokens() {
    let model = load("tiny-gpt2", Kind::Double);
    let direction = normal(model.config().d_model, 1, 8).column(0).to_owned();
    let (w_e, d) = (model.parameters()[0].1.shallow_clone(), Tensor::from_slice(&direction.to_vec()));
    let expected = w_e.matmul(&d);
    let top = model.top_tokens(&direction.view(), Vocabulary::Embedding, 3).unwrap();
    assert_eq!(top[0].0, expected.argmax(0, false).int64_value(&[]));
    assert_near("its value", top[0].1, expected.max().double_value(&[]), ALGEBRA);
    assert!(top[0].1 >= top[1].1 && top.len() == 3);
    // A direction written at the end of the stream, through the final norm: the change of logits, up to the scale.
    let (gamma, w_u) = (parameter(&model, "ln_final.w"), parameter(&model, "w_u"));
    let expected = ((&d - d.mean(Kind::Double)) * gamma).unsqueeze(0).matmul(&w_u).squeeze_dim(0);
    let top = model.top_tokens(&direction.view(), Vocabulary::Unembedding, 1).unwrap();
    assert_eq!(top[0].0, expected.argmax(0, false).int64_value(&[]));
    assert_near("its value", top[0].1, expected.max().double_value(&[]), ALGEBRA);
    assert!(matches!(model.top_tokens(&direction.slice(s![1..]), Vocabulary::Embedding, 3), Err(Error::Shape { .. })));
    let full = model.full_qk(0, 0, Offset::At(0), &RAW).unwrap();
    assert_eq!((full.nrows(), full.ncols(), full.width()), (97, 97, 8));
    assert!(load("tiny-bert", Kind::Double).full_ov(0, 0, &RAW).is_err());
    let encoder = load("tiny-bert-encoder", Kind::Double);
    assert!(encoder.circuits(&RAW).is_ok() && encoder.copying(&[], &RAW).is_err());
}

/// A checkpoint stripped of MLPs and embeddings answers what its weights can, and names what it lacks for the rest.
#[test]
fn attention_alone_is_enough() {
    for (name, keep) in [("tiny-gpt2", "attn"), ("tiny-llama", "self_attn"), ("tiny-bert", "attention")] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(fixture(name).join("config.json"), folder.path().join("config.json")).unwrap();
        let all = Tensor::read_safetensors(fixture(name).join("model.safetensors")).unwrap();
        let norm = |name: &str| ["ln_1.", "input_layernorm."].iter().any(|part| name.contains(part));
        let kept: Vec<_> =
            all.into_iter().filter(|(name, _)| name.contains(&format!(".{keep}.")) || norm(name)).collect();
        Tensor::write_safetensors(&kept, folder.path().join("model.safetensors")).unwrap();
        let stripped = Model::load(folder.path().to_str().unwrap()).unwrap();
        assert!(stripped.absent().contains(&"w_e") && stripped.absent().contains(&"mlp"), "{:?}", stripped.absent());
        let whole = Model::load(fixture(name).to_str().unwrap()).unwrap();
        assert!(whole.absent().is_empty());
        let composition = |model: &Model| {
            model.circuits(&CircuitOptions::default()).unwrap().composition(Composition::K, Offset::At(0)).unwrap()
        };
        assert_eq!(composition(&stripped).f64("value").unwrap(), composition(&whole).f64("value").unwrap());
        let run = stripped.run(&some_tokens(1, 3, 90, 1), &Plan::new().tap(Site::Pattern(0)));
        assert!(matches!(&run, Err(Error::PartAbsent { part, .. }) if part == "w_e"), "{run:?}");
        assert!(matches!(stripped.copying(&[], &RAW), Err(Error::PartAbsent { .. })));
    }
}
