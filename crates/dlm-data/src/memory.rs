//! Memory for what a stage has to remember of all rows, taken from the pipeline's limit.

use datafusion::{
    error::Result,
    execution::{
        TaskContext,
        memory_pool::{MemoryConsumer, MemoryLimit, MemoryReservation},
    },
};

/// A share of the memory limit. An eighth is set aside at once, before a sort that can spill takes everything; more is asked for
/// when it is needed.
#[derive(Debug)]
pub(crate) struct Memory {
    reservation: MemoryReservation,
    least: usize,
}

impl Memory {
    pub(crate) fn reserve(name: &str, context: &TaskContext) -> Result<Self> {
        let pool = context.memory_pool();
        let least = match pool.memory_limit() {
            MemoryLimit::Finite(limit) => limit / 8,
            _ => 0,
        };
        let reservation = MemoryConsumer::new(name).register(pool);
        reservation.try_resize(least)?;
        Ok(Self { reservation, least })
    }

    /// Sees to it that so many bytes are reserved.
    pub(crate) fn fit(&self, bytes: usize) -> Result<()> {
        self.reservation.try_resize(bytes.max(self.least))
    }
}
