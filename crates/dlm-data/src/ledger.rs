//! What each step left of the rows, counted while the plan runs.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// What a step left of the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepAccount {
    /// The step as overrides name it: `step.2.quality`.
    pub step: String,
    /// Rows that came out of it.
    pub rows: u64,
    /// Rows that it took out or (where the reason says so) only reported, by the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u64>,
}

/// The counters of one step.
#[derive(Debug, Default)]
pub(crate) struct StepCounter {
    step: String,
    rows: AtomicU64,
    reasons: Mutex<BTreeMap<String, u64>>,
}

impl StepCounter {
    /// Counts rows that came out.
    pub(crate) fn passed(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Counts rows for a reason.
    pub(crate) fn because(&self, reason: &str, rows: usize) {
        if rows > 0 {
            let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
            *reasons.entry(reason.to_owned()).or_default() += rows as u64;
        }
    }
}

/// The counters of all steps that change the number of rows.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    steps: Mutex<Vec<Arc<StepCounter>>>,
}

impl Ledger {
    /// Counters for a step.
    pub(crate) fn open(&self, step: &str) -> Arc<StepCounter> {
        let counter = Arc::new(StepCounter { step: step.to_owned(), ..StepCounter::default() });
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&counter));
        counter
    }

    /// Forgets the steps so far. Behind a limit reading stops early, and how far the steps before it came by then depends on
    /// the number of threads: such numbers say nothing. Nor do those of steps whose rows a query reads more than once.
    pub(crate) fn forget(&self) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The counts, in the order of the steps.
    pub(crate) fn accounts(&self) -> Vec<StepAccount> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let account = |counter: &Arc<StepCounter>| StepAccount {
            step: counter.step.clone(),
            rows: counter.rows.load(Ordering::Relaxed),
            reasons: counter.reasons.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        steps.iter().map(account).collect()
    }
}
