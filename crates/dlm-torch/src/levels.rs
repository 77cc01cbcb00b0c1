//! The loops of `kernels.cpp` at each level of the instruction set that the processor has, for tests.

use std::sync::{Mutex, PoisonError};

unsafe extern "C" {
    fn dlm_use_kernels(level: usize) -> bool;
}

/// The level is one for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Calls `test` once on each level, the best first, and leaves the best.
pub(crate) fn at_every_level(test: impl Fn()) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: it looks the number up in a list and stores it.
    let is_there = |level| unsafe { dlm_use_kernels(level) };
    let mut levels = 0;
    while is_there(levels) {
        println!("level {levels}");
        test();
        levels += 1;
    }
    assert!(levels > 0 && is_there(0));
}
