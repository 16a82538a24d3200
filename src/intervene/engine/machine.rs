//! What a sweep may take of the machine.

use tch::Device;

use super::Strategy;
use crate::device::free_memory;
use crate::memory::usable;
use crate::model::{Model, products_take};

/// Threads, memory, and how wide products are computed.
#[derive(Debug, Clone, Copy)]
pub(in crate::intervene) struct Machine {
    /// How many stacks of variants may be computed at once: as many as libtorch would have threads, each then on one. A GPU
    /// does one after another, and the naive loop is one.
    pub threads: usize,
    /// Bytes that activations may take, those of the unchanged run among them.
    pub memory: usize,
    /// Wide products are computed without a copy of the matrix: memory does not hold one for each thread.
    pub plain: bool,
}

impl Machine {
    /// What there is for a sweep of `model` that may hold `memory` bytes beside it, never more than is free; a quarter of what is
    /// free, where nothing is said.
    pub(in crate::intervene) fn of(model: &Model, strategy: Strategy, memory: Option<usize>) -> Self {
        let free = free_memory(model.device());
        let memory = memory.map_or(free / 4, |most| most.min(free));
        let parallel = strategy == Strategy::Auto && model.device() == Device::Cpu;
        let threads = if parallel { tch::get_num_threads().max(1) as usize } else { 1 };
        let copies = threads.saturating_mul(products_take(model));
        let plain = copies > memory / 8;
        Self { threads, plain, memory: usable(memory) - if plain { 0 } else { copies } }
    }
}
