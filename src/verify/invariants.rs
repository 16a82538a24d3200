//! What does any correct forward pass obey?

use tch::{Kind, Tensor};

use super::{Verification, rounding, scale_of, terms};
use crate::error::Result;
use crate::model::{Action, Edit, Model, NormAt, Plan, Tokens};
use crate::site::{Axis, Site};

impl Model {
    /// Checks what any correct forward pass obeys, on these prompts: see [`verify`](crate::verify).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-llama")?;
    /// let found = model.verify(&Tokens::for_verification(&model)?)?;
    /// assert!(found.passed() && found.checks.len() > 20);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the prompts do not fit the model, or a part of it is absent. A check that fails is no error here:
    /// [`Verification::require`] makes it one.
    pub fn verify(&self, tokens: &Tokens) -> Result<Verification> {
        self.one_sequence("invariants")?;
        let mut found = Verification::new(self, tokens, "invariants")?;
        let look = Look { model: self, tokens, terms: terms(self.config(), tokens.positions()) };
        look.causality(&mut found)?;
        look.additivity(&mut found)?;
        look.patterns(&mut found)?;
        look.patch_from_self(&mut found)?;
        look.padding(&mut found)?;
        Ok(found)
    }
}

struct Look<'a> {
    model: &'a Model,
    tokens: &'a Tokens,
    terms: usize,
}

impl Look<'_> {
    /// The bound of an activation that has passed so many layers.
    fn bound(&self, layers: usize) -> f64 {
        rounding(self.model.kind(), layers, self.terms)
    }

    /// The bound of a site, by its depth.
    fn bound_at(&self, site: Site) -> f64 {
        self.bound(site.layer().unwrap_or(self.model.config().n_layers) + 1)
    }

    /// What the model computes in the end.
    fn output(&self) -> Site {
        let config = self.model.config();
        if config.has_logits() { Site::Logits } else { Site::ResidPost(config.n_layers - 1) }
    }

    /// `x` with zeros at padding, along the axis of its positions.
    fn at_tokens(&self, site: Site, x: &Tensor) -> Tensor {
        if !self.tokens.is_padded() {
            return x.shallow_clone();
        }
        let axis = site.axes().into_iter().position(Axis::is_of_positions).unwrap_or(1);
        let mut size = vec![1; x.dim()];
        (size[0], size[axis]) = (x.size()[0], x.size()[axis]);
        x.masked_fill(&self.tokens.valid(x.device()).logical_not().view(size.as_slice()), 0.0)
    }

    /// Nothing before a position changes when other tokens stand from there on.
    fn causality(&self, into: &mut Verification) -> Result<()> {
        let config = self.model.config();
        let shortest = self.tokens.lengths().into_iter().min().unwrap_or(0);
        if !config.causal || shortest < 2 {
            let why = if config.causal { "a prompt has a single token" } else { "the model is bidirectional" };
            into.left_out.push(format!("causality: {why}"));
            return Ok(());
        }
        let (vocab, from) = (config.vocab as i64, shortest / 2);
        let other = |(position, &id): (usize, &i64)| if position < from { id } else { (id + vocab / 2 + 1) % vocab };
        let rows: Vec<Vec<i64>> =
            self.tokens.rows().iter().map(|row| row.iter().enumerate().map(other).collect()).collect();
        let sites = (0..config.n_layers).map(Site::ResidPost).chain(config.has_logits().then_some(Site::Logits));
        let sites: Vec<Site> = sites.collect();
        let run = |tokens: &Tokens| self.model.run(tokens, &Plan::new().taps(sites.iter().copied()));
        let (whole, changed) = (run(self.tokens)?, run(&Tokens::new(&rows)?)?);
        for &site in &sites {
            let [a, b] = [whole.get(site)?, changed.get(site)?].map(|x| x.narrow(1, 0, from as i64));
            into.compare("causality", Some(site), [&b, &a], 0.0, self.bound_at(site))?;
        }
        Ok(())
    }

    /// The residual stream is a sum, and attention's output is one over heads.
    fn additivity(&self, into: &mut Verification) -> Result<()> {
        let config = self.model.config();
        let (adds_up, has_mlp) = (self.model.wiring().adds_up(), config.has_mlp());
        let heads_add_up = !self.model.wiring().block(0).has_norm(NormAt::AttnOut);
        for (what, there) in [("of blocks", adds_up), ("of heads", heads_add_up)] {
            if !there {
                into.left_out.push(format!("additivity {what}: there is a norm on the sum"));
            }
        }
        let mut sites: Vec<fn(usize) -> Site> = vec![Site::ResidPre, Site::Result, Site::AttnOut, Site::ResidPost];
        sites.extend(has_mlp.then_some(Site::MlpOut as fn(usize) -> Site));
        self.model.each_layer(self.tokens, &sites, |layer, run| {
            let attn = run.get(Site::AttnOut(layer))?;
            if adds_up {
                let mut written = attn.shallow_clone();
                if has_mlp {
                    written = &written + run.get(Site::MlpOut(layer))?; // not `+=`, which works in place
                }
                let (before, site) = (run.get(Site::ResidPre(layer))?, Site::ResidPost(layer));
                let sum = before + &written * config.residual_scale;
                let scale = scale_of(before).max(scale_of(&written));
                let pair = [run.get(site)?, &sum].map(|x| self.at_tokens(site, x));
                into.compare("additivity", Some(site), [&pair[0], &pair[1]], scale, self.bound(1))?;
            }
            if heads_add_up {
                let each = run.get(Site::Result(layer))?;
                let sum = each.sum_dim_intlist([2i64].as_slice(), false, None::<Kind>);
                let sum = self.model.b_o(layer)?.map_or_else(|| sum.shallow_clone(), |b| &sum + b);
                let (site, scale) = (Site::AttnOut(layer), scale_of(each));
                let pair = [attn, &sum].map(|x| self.at_tokens(site, x));
                into.compare("additivity", Some(site), [&pair[0], &pair[1]], scale, self.bound(1))?;
            }
            Ok(())
        })
    }

    /// Each query's pattern sums to 1.
    fn patterns(&self, into: &mut Verification) -> Result<()> {
        if self.model.config().sinks {
            into.left_out.push("patterns: attention sinks take a share".to_owned());
            return Ok(());
        }
        self.model.each_layer(self.tokens, &[Site::Pattern], |layer, run| {
            let site = Site::Pattern(layer);
            let sum = run.get(site)?.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
            let pair = [&sum, &sum.ones_like()].map(|x| self.at_tokens(site, x));
            into.compare("patterns", Some(site), [&pair[0], &pair[1]], 1.0, self.bound(1))?;
            Ok(())
        })
    }

    /// A run in which a site of every layer is replaced by what it holds anyway gives the same output.
    fn patch_from_self(&self, into: &mut Verification) -> Result<()> {
        let config = self.model.config();
        let (output, all) = (self.output(), Site::all(config));
        let mut kinds: Vec<&str> = vec![];
        kinds.extend(all.iter().map(|site| site.kind()).filter(|kind| *kind != output.kind()));
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            let sites: Vec<Site> = all.iter().copied().filter(|site| site.kind() == kind).collect();
            let run = self.model.run(self.tokens, &Plan::new().taps(sites.iter().copied()).tap(output))?;
            let edits = sites.iter().map(|&site| Edit::new(site, Action::replace("self")));
            let plan = edits.fold(Plan::new().with("self", &run).tap(output), Plan::edit);
            let patched = self.model.run(self.tokens, &plan)?;
            let pair = [&patched, &run].map(|run| run.get(output).map(|x| self.at_tokens(output, x)));
            let [found, expected] = pair;
            let bound = self.bound_at(output);
            let site = sites.first().copied();
            into.compare("patch from self", site, [&found?, &expected?], 0.0, bound)?;
        }
        Ok(())
    }

    /// A prompt in a batch with longer ones gives what it gives alone.
    fn padding(&self, into: &mut Verification) -> Result<()> {
        let output = self.output();
        let first = self.tokens.row(0);
        // Whatever the batch, some prompt is shorter than another.
        let half = first[..first.len().div_ceil(2)].to_vec();
        let mut rows = vec![first.to_vec(), half];
        rows.extend(self.tokens.rows().iter().skip(1).cloned());
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        if self.model.config().depends_on_length(longest) {
            into.left_out.push("padding: rotary positions go by the longest prompt of a batch".to_owned());
            return Ok(());
        }
        let run = |rows: &[Vec<i64>]| self.model.run(&Tokens::new(rows)?, &Plan::new().tap(output));
        let together = run(&rows)?;
        for (prompt, row) in rows.iter().enumerate() {
            let own = together.get(output)?.narrow(0, prompt as i64, 1).narrow(1, 0, row.len() as i64);
            let alone = run(std::slice::from_ref(row))?;
            let bound = self.bound_at(output);
            into.compare("padding", Some(output), [&own, alone.get(output)?], 0.0, bound)?;
        }
        Ok(())
    }
}
