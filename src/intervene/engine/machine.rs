//! How much of the machine may a sweep use?

use tch::Device;

use super::Strategy;
use crate::device::free_memory;
use crate::memory::usable;
use crate::model::Model;

/// Threads, memory, and how to compute wide products.
#[derive(Debug, Clone, Copy)]
pub(in crate::intervene) struct Machine {
    /// How many stacks of variants may be computed at once, each on its own thread: libtorch's number of threads on the
    /// CPU, and 1 on a GPU or with the naive strategy.
    pub threads: usize,
    /// Bytes available to activations, including those of the unchanged run.
    pub memory: usize,
    /// Whether wide products are computed without a copy of the matrix, because memory does not hold one per thread.
    pub plain: bool,
}

impl Machine {
    /// The resources of a sweep of `model` limited to `memory` bytes besides the model, and to what is free. Default: a
    /// quarter of what is free.
    pub(in crate::intervene) fn of(model: &Model, strategy: Strategy, memory: Option<usize>) -> Self {
        let free = free_memory(model.device());
        let memory = memory.map_or(free / 4, |most| most.min(free));
        let parallel = strategy == Strategy::Auto && model.device() == Device::Cpu;
        let threads = if parallel { tch::get_num_threads().max(1) as usize } else { 1 };
        let copies = threads.saturating_mul(model.product_takes());
        let plain = copies > memory / 8;
        Self { threads, plain, memory: usable(memory) - if plain { 0 } else { copies } }
    }
}
