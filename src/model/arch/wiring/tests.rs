#![allow(clippy::unwrap_used)]

use super::*;
use crate::model::arch::{Encoder, Experts};

fn block(change: impl FnOnce(&mut ModelConfig)) -> BlockWiring {
    let mut config = ModelConfig::default();
    change(&mut config);
    BlockWiring::new(&config, 0)
}

fn wires(block: &BlockWiring, all: &[Wire]) -> Wires {
    assert!(all.iter().all(|wire| block.wires().any(|own| own == *wire)));
    all.iter().copied().collect()
}

/// The value after whose step a run that is changed at `edited` joins, and the values that it joins with.
fn joins(block: &BlockWiring, edited: Wire) -> (Wire, Wires) {
    let step = block.departs(Wires::NONE.with(edited));
    (block.steps()[step].wire, block.live(step))
}

#[test]
fn runs_depart_as_late_as_they_can() {
    use Wire::{AttnOut, K, MidSum, MlpOut, MlpPost, Pattern, Q, ResidMid, ResidPost, ResidPre, V, Z};
    let serial = block(|_| {});
    let heads = wires(&serial, &[ResidPre, K, V, Q]);
    for edited in [K, V, Q, Pattern, Wire::Scores] {
        assert_eq!(joins(&serial, edited), (Q, heads), "{edited:?}");
    }
    assert_eq!(joins(&serial, ResidPre), (ResidPre, wires(&serial, &[ResidPre])));
    assert_eq!(joins(&serial, Wire::Ln1Scale), (ResidPre, wires(&serial, &[ResidPre])));
    assert_eq!(joins(&serial, Z), (Z, wires(&serial, &[ResidPre, Z])));
    assert_eq!(joins(&serial, Wire::Result), (Z, wires(&serial, &[ResidPre, Z])));
    assert_eq!(joins(&serial, MlpPost), (MlpPost, wires(&serial, &[ResidMid, MlpPost])));
    assert_eq!(joins(&serial, MlpOut), (MlpOut, wires(&serial, &[ResidMid, MlpOut])));
    assert_eq!(joins(&serial, ResidPost), (ResidPost, wires(&serial, &[ResidPost])));
    // Side by side, nothing but the sum reads what attention adds.
    let parallel = block(|config| config.parallel = Parallel::TwoNorms);
    assert_eq!(joins(&parallel, AttnOut), (MlpOut, wires(&parallel, &[ResidPre, AttnOut, MlpOut])));
    // After the sum, the norm's divisor is made of the sum alone.
    let post = block(|config| config.norm_place = NormPlace::Post);
    assert_eq!(joins(&post, Wire::Ln1Scale), (MidSum, wires(&post, &[MidSum])));
}

#[test]
fn changes_reach_what_is_computed_from_them() {
    use Wire::{AttnOut, K, MlpOut, MlpPre, Pattern, Q, ResidPost, Scores, V, Z};
    let serial = block(|_| {});
    assert!(!serial.reached(V).has(Pattern) && serial.reached(V).has(Z));
    assert!(!serial.reached(Q).has(K) && serial.reached(Q).has(Scores));
    assert!(!serial.reached(AttnOut).has(Wire::Result) && serial.reached(AttnOut).has(MlpPre));
    let parallel = block(|config| config.parallel = Parallel::OneNorm);
    assert!(!parallel.reached(Z).has(MlpOut) && parallel.reached(Z).has(ResidPost));
    let experts = block(|config| {
        config.experts = Some(Experts { n: 4, top_k: 2, normalised: true, router_bias: false, shared: None })
    });
    assert!(experts.reached(Wire::Router).has(MlpOut) && experts.step(MlpPre).is_none());
}

#[test]
fn a_decoder_reads_its_memory_across() {
    use Wire::{CrossK, CrossOut, CrossPattern, CrossQ, CrossV, CrossZ, Memory, Pattern, ResidMid, ResidPost};
    let config = |norm_place| ModelConfig {
        n_layers: 2,
        encoder: Some(Encoder { n_layers: 1, vocab: None }),
        norm_place,
        ..ModelConfig::default()
    };
    let wiring = Wiring::new(&config(NormPlace::Pre));
    let [encoder, decoder] = [wiring.block(0), wiring.block(1)];
    assert!(encoder.wires().all(|wire| !wire.is_of_source() && wire != CrossQ) && !encoder.attend.causal);
    let reached = decoder.reached(Memory);
    assert!(!reached.has(ResidMid) && !reached.has(CrossQ) && !reached.has(Pattern));
    assert!(reached.has(CrossK) && reached.has(CrossPattern) && reached.has(ResidPost));
    assert_eq!(joins(decoder, CrossPattern), (CrossQ, wires(decoder, &[ResidMid, CrossK, CrossV, CrossQ])));
    assert_eq!(joins(decoder, CrossZ), (CrossZ, wires(decoder, &[ResidMid, CrossZ])));
    assert_eq!(joins(decoder, CrossOut), (CrossOut, wires(decoder, &[ResidMid, CrossOut])));
    // A norm after the sum, as after the other sub-layers.
    let post = BlockWiring::new(&config(NormPlace::Post), 1);
    assert_eq!(joins(&post, Wire::LnCrossScale), (Wire::CrossSum, wires(&post, &[Wire::CrossSum])));
    // From one side to the other there is no other way.
    assert!(wiring.reaches(Site::ResidPre(0), Site::CrossZ(1)) && !wiring.reaches(Site::ResidPost(0), Site::Z(1)));
    assert!(wiring.reaches(Site::SourceEmbed, Site::Memory) && wiring.reaches(Site::Memory, Site::Logits));
    assert!(!wiring.reaches(Site::Embed, Site::Memory) && !wiring.reaches(Site::Memory, Site::Embed));
    assert!(wiring.reaches(Site::Embed, Site::CrossScores(1)) && !wiring.reaches(Site::Embed, Site::CrossK(1)));
}

#[test]
fn what_heads_write_lands_after_sums_alone() {
    let lands = |block: &BlockWiring| block.steps()[block.lands()].wire;
    assert_eq!(lands(&block(|_| {})), Wire::ResidMid);
    assert_eq!(lands(&block(|config| config.d_mlp = 0)), Wire::ResidPost);
    assert_eq!(lands(&block(|config| config.parallel = Parallel::OneNorm)), Wire::ResidPost);
    assert_eq!(lands(&block(|config| config.norm_place = NormPlace::Post)), Wire::MidSum);
    assert_eq!(lands(&block(|config| config.norm_place = NormPlace::Sandwich)), Wire::AttnSum);
}

#[test]
fn frozen_parts_keep_what_follows_from_them_alone() {
    let taken = |block: &BlockWiring, mlps, edited: &[Wire]| {
        block.frozen(mlps, edited.iter().copied().collect()).taken.iter().collect::<Vec<_>>()
    };
    let serial = block(|_| {});
    assert_eq!(taken(&serial, false, &[]), [Wire::AttnOut]);
    assert_eq!(taken(&serial, false, &[Wire::Z]), [Wire::Z]);
    assert_eq!(taken(&serial, true, &[]), [Wire::AttnOut, Wire::MlpOut]);
    let sandwich = block(|config| config.norm_place = NormPlace::Sandwich);
    assert_eq!(taken(&sandwich, false, &[]), [Wire::AttnOut]);
    assert_eq!(taken(&sandwich, false, &[Wire::Z]), [Wire::Z]);
}
