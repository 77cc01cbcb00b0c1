//! Row groups that were read lately, decompressed, within a fixed amount of memory.

use crate::shard::Row;
use std::{collections::HashMap, sync::Arc};

/// Tokens that are kept, 16 bytes each: 32 MiB.
const CACHED_TOKENS: usize = 1 << 21;

/// The groups that were read lately; those that were not asked for the longest go first.
#[derive(Debug, Default)]
pub(crate) struct GroupCache {
    groups: HashMap<(usize, usize), Cached>,
    tokens: usize,
    /// Counts the requests, to know which is the oldest.
    clock: u64,
}

#[derive(Debug)]
struct Cached {
    rows: Arc<Vec<Row>>,
    tokens: usize,
    asked: u64,
}

impl GroupCache {
    /// A group of a shard, if it is here.
    pub(crate) fn get(&mut self, shard: usize, group: usize) -> Option<Arc<Vec<Row>>> {
        self.clock += 1;
        let cached = self.groups.get_mut(&(shard, group))?;
        cached.asked = self.clock;
        Some(Arc::clone(&cached.rows))
    }

    /// Keeps a group, and lets go of old ones.
    pub(crate) fn keep(&mut self, shard: usize, group: usize, rows: Vec<Row>) {
        self.clock += 1;
        let tokens = rows.iter().map(|row| row.input_ids.len()).sum();
        let cached = Cached { rows: Arc::new(rows), tokens, asked: self.clock };
        self.tokens += tokens;
        if let Some(before) = self.groups.insert((shard, group), cached) {
            self.tokens -= before.tokens; // another thread has read it at the same time
        }
        while self.tokens > CACHED_TOKENS && self.groups.len() > 1 {
            let Some(oldest) = self.groups.iter().min_by_key(|(_, cached)| cached.asked).map(|(key, _)| *key) else {
                return;
            };
            self.tokens -= self.groups.remove(&oldest).map_or(0, |cached| cached.tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(tokens: usize) -> Vec<Row> {
        vec![Row { input_ids: vec![0; tokens], ..Row::default() }]
    }

    #[test]
    fn what_was_not_asked_for_the_longest_goes_first_and_the_rest_stays_within_the_limit() {
        let mut cache = GroupCache::default();
        for group in 0..4 {
            cache.keep(0, group, rows(CACHED_TOKENS / 4));
        }
        assert!(cache.get(0, 0).is_some());
        cache.keep(1, 0, rows(CACHED_TOKENS / 4));
        assert!(cache.get(0, 1).is_none());
        assert!(cache.get(0, 0).is_some() && cache.get(1, 0).is_some());
        cache.keep(1, 0, rows(CACHED_TOKENS / 2));
        assert!(cache.tokens <= CACHED_TOKENS);
        // A group larger than the limit is kept while it is the newest: its rows are asked for one after the other.
        cache.keep(2, 0, rows(2 * CACHED_TOKENS));
        assert!(cache.get(2, 0).is_some() && cache.groups.len() == 1);
    }
}
