//! Does the model need the head that plays a role? The head is ablated, and compared with control heads ablated by the
//! same amount.

use ndarray::{Array3, ArrayView1, ArrayView2, Axis};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::align::Item;
use super::annotation::Annotated;
use super::role::{RoleOptions, Roles};
use crate::error::{Error, Result};
use crate::intervene::{Ablation, Metric, Sweep, Variant};
use crate::model::{Action, Edit, Model, Site, Tokens};
use crate::table::{Keys, Observation, Table};

/// A role that a head may play, named after a kind of link: `nsubj_to_head`, `entity`, `coreference`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// The name.
    pub name: String,
}

impl Role {
    /// The role of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Which head plays this role, and does the model need it there? Finds the head on one half of the texts, judges it
    /// on the other half ([`Roles::best`]), and ablates it there.
    ///
    /// The head's output is set to zero at the tokens of the query words and nowhere else. Control heads, drawn from
    /// the heads with outputs of the most similar size, are ablated at the same tokens, each scaled so that the removed
    /// output has the same size (root mean square of z W_O). The effect is measured on the model's own task at those
    /// tokens: the loss of its predictions there, in nats per token, or, for a model without logits, how far the
    /// embedding moves (cosine distance). The table has three more rows:
    ///
    /// - `effect`: how much the measurement increases without the head, with a bootstrap interval over texts;
    ///   `baseline`: the mean over the controls; `z_score`: the difference in standard deviations of the controls.
    /// - `effect_rank`: the share of controls with a smaller effect, from 0 to 1.
    /// - `effect_p_value`: the share of the heads, this one included, whose effect is at least as large. A role counts
    ///   as causal if this is small, which takes about twenty controls.
    ///
    /// A role need not matter for predicting the next word, and a head that others can replace has no effect.
    ///
    /// # Errors
    /// If the role has too few links, or as [`Roles::measure`].
    pub fn test(&self, model: &Model, texts: &[Annotated], options: &RoleOptions) -> Result<Table> {
        let roles = Roles::of(model, texts, options, Some(&self.name))?;
        let mut rows = roles.best_rows()?;
        let few = || Error::argument("role", "one with enough links in each half", &self.name);
        let items = roles.items.get(&self.name).ok_or_else(few)?;
        let (head, _) = roles.choose(items).ok_or_else(few)?;
        let places =
            RolePositions::new(model, texts, items.iter().filter(|item| roles.judges(item.text)), options.texts)?;
        let lengths = places.lengths(model)?;
        let controls = controls(head, &lengths, options);
        if controls.is_empty() {
            return Err(Error::argument("model", "another head that writes something", "none"));
        }
        let effects = places.effects(model, &[&[head], controls.as_slice()].concat(), lengths[head], &lengths)?;
        // A text with no prediction at these tokens has no effect.
        let mean = |effects: &[f64]| {
            let there: Vec<f64> = effects.iter().copied().filter(|effect| effect.is_finite()).collect();
            there.iter().sum::<f64>() / there.len() as f64
        };
        let (own, others): (f64, Vec<f64>) =
            (mean(&effects[0]), effects[1..].iter().map(|effects| mean(effects)).collect());
        let baseline = mean(&others);
        let spread = others.iter().map(|effect| (effect - baseline).powi(2)).sum::<f64>();
        let deviation = (spread / (others.len() as f64 - 1.0)).sqrt();
        let column = ArrayView1::from(&effects[0]).insert_axis(Axis(1));
        let interval = options.intervals().means(column)?.pop().flatten();
        let as_much = others.iter().filter(|effect| **effect >= own).count();
        let row = |metric: &str, value| Observation {
            keys: roles.keys(&self.name, head),
            metric: metric.to_owned(),
            value,
            ..Observation::default()
        };
        let effect = Observation {
            baseline: Some(baseline),
            low: interval.map(|interval| interval.low),
            high: interval.map(|interval| interval.high),
            z_score: (deviation > 0.0).then(|| (own - baseline) / deviation),
            ..row("effect", own)
        };
        let p_value = row("effect_p_value", (1 + as_much) as f64 / (1 + others.len()) as f64);
        let less = others.iter().filter(|effect| **effect < own).count();
        let rank = row("effect_rank", less as f64 / others.len() as f64);
        rows.extend([effect, rank, p_value]);
        Table::new(rows, roles.provenance())
    }
}

/// Texts, and the tokens in each at which a role applies.
struct RolePositions {
    tokens: Tokens,
    at: Vec<Vec<usize>>,
}

impl RolePositions {
    fn new<'a>(model: &Model, texts: &[Annotated], items: impl Iterator<Item = &'a Item>, most: usize) -> Result<Self> {
        let (mut chosen, mut at): (Vec<usize>, Vec<Vec<usize>>) = (vec![], vec![]);
        for item in items {
            if chosen.last() != Some(&item.text) {
                if chosen.len() == most {
                    break;
                }
                chosen.push(item.text);
                at.push(vec![]);
            }
            if let Some(tokens) = at.last_mut() {
                tokens.extend(&item.tokens);
            }
        }
        for tokens in &mut at {
            tokens.sort_unstable();
            tokens.dedup();
        }
        let texts: Vec<&str> = chosen.iter().map(|&text| texts[text].text.as_str()).collect();
        Ok(Self { tokens: model.tokens(&texts)?, at })
    }

    /// The size of each head's output at these tokens: root mean square, heads numbered layer * heads + head.
    fn lengths(&self, model: &Model) -> Result<Vec<f64>> {
        let n = self.tokens.positions();
        let flat: Vec<i64> =
            self.at.iter().enumerate().flat_map(|(b, at)| at.iter().map(move |p| (b * n + p) as i64)).collect();
        let flat = Tensor::from_slice(&flat).to_device(model.device());
        let mut lengths = vec![];
        model.each_layer(&self.tokens, &[Site::Z], |layer, run| {
            let z = run.get(Site::Z(layer))?.flatten(0, 1).index_select(0, &flat).transpose(0, 1); // [head, token, d_head]
            let written = z.f_matmul(&model.w_o(layer)?).map_err(Error::torch("the length of what heads write"))?;
            let squares = written.square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
            let rms = squares.mean_dim([-1i64].as_slice(), false, None).sqrt();
            lengths.extend(Vec::<f64>::try_from(rms).map_err(Error::torch("the length of what heads write"))?);
            Ok(())
        })?;
        Ok(lengths)
    }

    /// The effect on each text of ablating some heads, each by the amount `length`: `[head][text]`.
    fn effects(&self, model: &Model, heads: &[usize], length: f64, lengths: &[f64]) -> Result<Vec<Vec<f64>>> {
        let number = |n: usize| u32::try_from(n).ok();
        let n_heads = model.config().n_heads;
        let variant = |(step, &head): (usize, &usize)| {
            let site = Site::Z(head / n_heads);
            let action = Action::Scale { factor: 1.0 - length / lengths[head] };
            let edit = |(prompt, at): (usize, &Vec<usize>)| {
                let mut edit = Edit::new(site, action.clone()).head(head % n_heads).positions(at.iter().copied());
                edit.at.prompts = Some(vec![prompt]);
                edit
            };
            let edits = self.at.iter().enumerate().map(edit).collect();
            Variant { keys: Keys { variant: number(step), ..Keys::default() }, edits }
        };
        let variants: Vec<Variant> = heads.iter().enumerate().map(variant).collect();
        let logits = model.config().has_logits();
        let sweep = Sweep::ablate(model, &self.tokens, Ablation::Zero).variants(variants);
        let table = match logits {
            true => sweep.metric(Metric::Loss).per_token().run()?,
            false => sweep.metric(Metric::EmbeddingDistance).per_prompt().run()?,
        };
        let (steps, prompts, effects) = (table.f64("variant")?, table.f64("prompt")?, table.effect()?);
        let targets = if logits { table.f64("target")? } else { vec![] };
        // A causal model predicts the next token; a bidirectional one is scored on the token itself.
        let ahead = usize::from(model.config().causal);
        let mut sums = Array3::<f64>::zeros((heads.len(), self.at.len(), 2));
        for (row, effect) in effects.into_iter().enumerate() {
            let (step, prompt) = (steps[row] as usize, prompts[row] as usize);
            let of_role = |target: &f64| self.at[prompt].iter().any(|at| at + ahead == *target as usize);
            if targets.get(row).is_none_or(of_role) {
                sums[[step, prompt, 0]] += effect;
                sums[[step, prompt, 1]] += 1.0;
            }
        }
        let mean = |sums: ArrayView2<'_, f64>| sums.rows().into_iter().map(|row| row[0] / row[1]).collect();
        Ok(sums.outer_iter().map(mean).collect())
    }
}

/// The control heads: a random half of the `2 * controls` heads with outputs of the most similar size.
fn controls(head: usize, lengths: &[f64], options: &RoleOptions) -> Vec<usize> {
    let far = |other: usize| (lengths[other] / lengths[head]).ln().abs();
    let mut others: Vec<usize> = (0..lengths.len()).filter(|&other| other != head && far(other).is_finite()).collect();
    others.sort_by(|&a, &b| far(a).total_cmp(&far(b)));
    others.truncate(2 * options.controls);
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    others.choose_multiple(&mut rng, options.controls).copied().collect()
}
