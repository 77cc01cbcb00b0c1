//! What becomes of rows and tokens, counted while a plan runs.
//!
//! Steps run ahead of one another and on several threads, and a killed preparation goes on in the middle. So what happens to a
//! numbered document is noted under its number, and the sums up to a number are the same whenever they are taken.

use crate::{error::DataError, manifest::TokenAccount, number::NUMBER, source::Entry};
use datafusion::arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::Int64Type,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The counts of a plan that runs. Shared by its steps.
#[derive(Debug, Default)]
pub(crate) struct Account {
    ledger: Mutex<Ledger>,
    /// What options ask for that rows may have or not.
    expected: Mutex<BTreeSet<String>>,
    documents: AtomicU64,
    tokens: AtomicU64,
}

#[derive(Debug, Default)]
struct Ledger {
    /// What is known of documents below this number was counted before the preparation was killed.
    start: i64,
    settled: Totals,
    /// What happened to documents whose turn in `settled` has not come.
    open: Vec<(i64, Event)>,
    /// What happened to documents before they were numbered.
    unnumbered: Totals,
}

/// Something that happened to a document.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Tokenized { tokens: u64 },
    Dropped { reason: &'static str, tokens: u64 },
    Added { reason: &'static str, tokens: u64 },
    Ignored { field: String, messages: u64 },
    Seen { what: String },
    LeftOut { entry: Entry },
}

/// Sums over documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Totals {
    pub(crate) documents: u64,
    pub(crate) tokens: u64,
    pub(crate) empty_documents: u64,
    /// Tokens that steps behind `tokenize` removed, by reason.
    pub(crate) dropped_tokens: BTreeMap<String, u64>,
    /// Tokens that steps behind `tokenize` added, by reason.
    pub(crate) added_tokens: BTreeMap<String, u64>,
    /// Messages with something in a field that the chat template leaves out, by the field.
    #[serde(default)]
    pub(crate) ignored_fields: BTreeMap<String, u64>,
    /// What options ask for and rows have.
    #[serde(default)]
    pub(crate) seen: BTreeSet<String>,
    /// Rows that could not be used and were left out.
    #[serde(default)]
    pub(crate) left_out: BTreeSet<Entry>,
}

impl Account {
    /// Says what an option asks for. If no row has it, the account tells.
    pub(crate) fn expect(&self, what: String) {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).insert(what);
    }

    /// Counts what was expected and is in rows of a batch: the last row that has it, and what it is.
    pub(crate) fn seen(&self, batch: &RecordBatch, seen: impl IntoIterator<Item = (usize, String)>) {
        self.note(batch, seen.into_iter().map(|(i, what)| (i, Event::Seen { what })));
    }

    /// Counts messages with something in a field that the chat template leaves out: `(row in the batch, field, messages)`.
    pub(crate) fn ignored(&self, batch: &RecordBatch, ignored: impl IntoIterator<Item = (usize, String, u64)>) {
        self.note(batch, ignored.into_iter().map(|(i, field, messages)| (i, Event::Ignored { field, messages })));
    }

    /// Takes rows out of a batch that cannot be used, and counts them; gives what is left, and the places it had.
    pub(crate) fn without(
        &self,
        batch: &RecordBatch,
        left_out: Vec<(usize, Entry)>,
    ) -> crate::Result<(RecordBatch, Vec<usize>)> {
        let places: BTreeSet<usize> = left_out.iter().map(|(i, _)| *i).collect();
        let kept: Vec<usize> = (0..batch.num_rows()).filter(|i| !places.contains(i)).collect();
        if left_out.is_empty() {
            return Ok((batch.clone(), kept));
        }
        self.note(batch, left_out.into_iter().map(|(i, entry)| (i, Event::LeftOut { entry })));
        let stays: BooleanArray = (0..batch.num_rows()).map(|i| Some(!places.contains(&i))).collect();
        let rest = filter_record_batch(batch, &stays);
        Ok((rest.map_err(|error| DataError::from_datafusion(error.into(), "rows that are left out"))?, kept))
    }

    /// The rows that were left out, once the plan has run to its end.
    pub(crate) fn rows_left_out(&self) -> BTreeSet<Entry> {
        let mut left_out = self.settle(i64::MAX).left_out;
        left_out.extend(self.ledger().unnumbered.left_out.iter().cloned());
        left_out
    }

    /// Goes on from the sums over all documents below a number.
    pub(crate) fn resume(&self, totals: Totals, start: i64) {
        self.documents.store(totals.documents, Ordering::Relaxed);
        self.tokens.store(totals.tokens, Ordering::Relaxed);
        let mut ledger = self.ledger();
        ledger.settled = totals;
        ledger.start = start;
    }

    /// Counts the documents of a batch that was tokenized, by their lengths in tokens.
    pub(crate) fn tokenized(&self, batch: &RecordBatch, lengths: &[usize]) {
        let tokens = |length: &usize| *length as u64;
        self.documents.fetch_add(lengths.len() as u64, Ordering::Relaxed);
        self.tokens.fetch_add(lengths.iter().map(tokens).sum(), Ordering::Relaxed);
        let events = lengths.iter().map(|length| Event::Tokenized { tokens: tokens(length) });
        self.note(batch, events.enumerate());
    }

    /// Counts tokens that a step behind `tokenize` removed: `(row in the batch, tokens)`. A document without tokens counts too.
    pub(crate) fn dropped_tokens(
        &self,
        batch: &RecordBatch,
        reason: &'static str,
        dropped: impl IntoIterator<Item = (usize, u64)>,
    ) {
        self.note(batch, dropped.into_iter().map(|(i, tokens)| (i, Event::Dropped { reason, tokens })));
    }

    /// Counts tokens that a step behind `tokenize` added: `(row in the batch, tokens)`.
    pub(crate) fn added_tokens(
        &self,
        batch: &RecordBatch,
        reason: &'static str,
        added: impl IntoIterator<Item = (usize, u64)>,
    ) {
        self.note(batch, added.into_iter().map(|(i, tokens)| (i, Event::Added { reason, tokens })));
    }

    /// The sums over all documents below a number. Numbers only rise from call to call.
    pub(crate) fn settle(&self, below: i64) -> Totals {
        let mut ledger = self.ledger();
        let Ledger { settled, open, .. } = &mut *ledger;
        open.retain(|(number, event)| {
            let is_due = *number < below;
            if is_due {
                settled.add(event);
            }
            !is_due
        });
        ledger.settled.clone()
    }

    /// Documents and tokens so far, for people to watch.
    pub(crate) fn so_far(&self) -> (u64, u64) {
        (self.documents.load(Ordering::Relaxed), self.tokens.load(Ordering::Relaxed))
    }

    /// The account of a plan that has run to its end. What packing did is left for it to fill in.
    pub(crate) fn close(&self, rows: u64) -> TokenAccount {
        let mut totals = self.settle(i64::MAX);
        let ledger = self.ledger();
        totals.join(&ledger.unnumbered);
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        TokenAccount {
            ignored_fields: totals.ignored_fields,
            unseen: expected.difference(&totals.seen).cloned().collect(),
            rows,
            documents: totals.documents,
            tokens: totals.tokens,
            dropped_empty_documents: totals.empty_documents,
            dropped_tokens: totals.dropped_tokens,
            added_tokens: totals.added_tokens,
            ..TokenAccount::default()
        }
    }

    fn note(&self, batch: &RecordBatch, events: impl Iterator<Item = (usize, Event)>) {
        let numbers = batch.column_by_name(NUMBER).map(AsArray::as_primitive::<Int64Type>);
        let mut ledger = self.ledger();
        for (i, event) in events {
            match numbers.as_ref().map(|numbers| numbers.value(i)) {
                None => ledger.unnumbered.add(&event),
                Some(number) if number < ledger.start => {}
                Some(number) => ledger.open.push((number, event)),
            }
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Totals {
    fn add(&mut self, event: &Event) {
        match event {
            Event::Tokenized { tokens } => {
                self.documents += 1;
                self.tokens += tokens;
                self.empty_documents += u64::from(*tokens == 0);
            }
            Event::Dropped { reason, tokens } => add(&mut self.dropped_tokens, reason, *tokens),
            Event::Added { reason, tokens } => add(&mut self.added_tokens, reason, *tokens),
            Event::Ignored { field, messages } => add(&mut self.ignored_fields, field, *messages),
            Event::Seen { what } => _ = self.seen.insert(what.clone()),
            Event::LeftOut { entry } => _ = self.left_out.insert(entry.clone()),
        }
    }

    fn join(&mut self, other: &Self) {
        self.documents += other.documents;
        self.tokens += other.tokens;
        self.empty_documents += other.empty_documents;
        other.dropped_tokens.iter().for_each(|(reason, tokens)| add(&mut self.dropped_tokens, reason, *tokens));
        other.added_tokens.iter().for_each(|(reason, tokens)| add(&mut self.added_tokens, reason, *tokens));
        other.ignored_fields.iter().for_each(|(field, messages)| add(&mut self.ignored_fields, field, *messages));
        self.seen.extend(other.seen.iter().cloned());
        self.left_out.extend(other.left_out.iter().cloned());
    }
}

fn add(counts: &mut BTreeMap<String, u64>, reason: &str, more: u64) {
    match counts.get_mut(reason) {
        Some(count) => *count += more,
        None if more > 0 => drop(counts.insert(reason.to_owned(), more)),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, Int64Array};
    use std::sync::Arc;

    fn batch(numbers: &[i64]) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
        RecordBatch::try_from_iter([(NUMBER, numbers)]).unwrap()
    }

    #[test]
    fn sums_up_to_a_number_do_not_depend_on_what_ran_ahead() {
        let account = Account::default();
        account.tokenized(&batch(&[2, 3]), &[5, 7]);
        account.tokenized(&batch(&[0, 1]), &[1, 0]);
        account.dropped_tokens(&batch(&[2, 3]), "truncate", [(0, 2), (1, 4)]);
        account.added_tokens(&batch(&[0, 1]), "answer_tail", [(0, 9)]);
        let three = account.settle(3);
        assert_eq!((three.documents, three.tokens, three.empty_documents), (3, 6, 1));
        assert_eq!(three.dropped_tokens, BTreeMap::from([("truncate".to_owned(), 2)]));
        assert_eq!(three.added_tokens, BTreeMap::from([("answer_tail".to_owned(), 9)]));
        assert_eq!(account.close(10).dropped_tokens["truncate"], 6);
    }

    #[test]
    fn what_was_counted_before_a_kill_is_not_counted_again() {
        let account = Account::default();
        account.resume(Totals { documents: 4, tokens: 40, ..Totals::default() }, 4);
        account.tokenized(&batch(&[1, 3, 4]), &[10, 10, 10]); // 1 and 3 are needed again
        let closed = account.close(9);
        assert_eq!((closed.documents, closed.tokens, closed.rows), (5, 50, 9));
    }
}
