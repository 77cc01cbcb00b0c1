//! `KvCache`: keys and values of tokens that later ones look back at, so that they are computed once.

use crate::{
    error::{ModelError, Result},
    model::Model,
};
use tch::{Kind, Tensor};

/// Keys, values and final states of the tokens that a model has read, block by block.
///
/// A block that is appended sees itself both ways and every cached token, which see none of it: attention that is causal over
/// blocks, and exactly that. Overwriting a window leaves the keys of later tokens as they were computed, before they could see the
/// new ones: an approximation, as the dual cache of Fast-dLLM ([arXiv:2505.22618](https://arxiv.org/abs/2505.22618)) is one. So is
/// a text that outgrows the first length of [`RotaryScaling::Dynamic`](crate::RotaryScaling) or `LongRope`: keys stay as they were
/// turned when the text was shorter.
///
/// ```
/// use dlm_model::{CacheUse, KvCache, LoadOptions, Model, ModelConfig};
/// use tch::Tensor;
///
/// let model = Model::from_config(ModelConfig::preset("tiny", 100)?, 1, &LoadOptions::default())?;
/// let mut cache = KvCache::default();
/// let (prompt, block) = (Tensor::from_slice2(&[[1i64, 2, 3, 4]]), Tensor::from_slice2(&[[99i64, 99]]));
/// model.cached_states(&prompt, &mut cache, CacheUse::Append)?;
/// let states = model.cached_states(&block, &mut cache, CacheUse::Peek)?; // as often as it takes to fill the block
/// assert_eq!((states.size()[0], cache.len()), (2, 4));
/// # Ok::<(), dlm_model::ModelError>(())
/// ```
#[derive(Debug, Default)]
pub struct KvCache {
    pub(crate) layers: Vec<Layer>,
    /// Final states, `[batch, len, hidden]`: a model that shifts needs the one before a window.
    states: Option<Tensor>,
}

/// What tokens that are read do to the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheUse {
    /// They come behind the cached ones and join them.
    Append,
    /// They come behind the cached ones and leave no trace.
    Peek,
    /// They take the places from this one on, all of which are cached.
    Overwrite {
        /// The first place.
        start: i64,
    },
}

/// One block's keys, rotated, and values, `[batch, kv_heads, len, head_dim]`.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
}

impl KvCache {
    /// Cached tokens of each row.
    #[must_use]
    pub fn len(&self) -> i64 {
        self.states.as_ref().map_or(0, |states| states.size()[1])
    }

    /// Whether nothing is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens from place `len` on.
    pub fn crop(&mut self, len: i64) {
        if len < self.len() {
            self.each(|tensor, places| tensor.narrow(places, 0, len.max(0)));
        }
    }

    /// Makes row `i` what row `rows[i]` was; rows may be repeated and left out.
    ///
    /// # Panics
    /// When `rows`, `[n]` of `Int64`, names a row that is not there.
    pub fn reorder(&mut self, rows: &Tensor) {
        self.each(|tensor, _| tensor.index_select(0, rows));
    }

    /// Changes every tensor, given which of its dimensions counts places.
    fn each(&mut self, change: impl Fn(&Tensor, i64) -> Tensor) {
        for layer in &mut self.layers {
            (layer.key, layer.value) = (change(&layer.key, 2), change(&layer.value, 2));
        }
        self.states = self.states.as_ref().map(|states| change(states, 1));
    }
}

/// `old` with `new` from place `start` on, along the dimension `places`.
pub(crate) fn spliced(old: &Tensor, new: &Tensor, start: i64, places: i64) -> Tensor {
    let (len, end) = (old.size()[places as usize], start + new.size()[places as usize]);
    let before = old.narrow(places, 0, start);
    if end >= len {
        return Tensor::cat(&[&before, new], places);
    }
    Tensor::cat(&[&before, new, &old.narrow(places, end, len - end)], places)
}

impl Model {
    /// The states that predict the tokens of a window, `[batch * window, hidden]`, given the cached ones.
    ///
    /// `ids` is `[batch, window]` of `Int64`; no row has padding. Positions count on from the beginning of the cache.
    ///
    /// # Errors
    /// [`ModelError::CacheMismatch`] for another batch or places that are not cached, [`ModelError::SequenceTooLong`],
    /// [`ModelError::Torch`] for ids beyond the vocabulary or too little memory.
    pub fn cached_states(&self, ids: &Tensor, cache: &mut KvCache, usage: CacheUse) -> Result<Tensor> {
        let (batch, window) = ids.size2()?;
        let len = cache.len();
        let start = match usage {
            CacheUse::Append | CacheUse::Peek => len,
            CacheUse::Overwrite { start } => start,
        };
        let end = start + window;
        let rows = cache.states.as_ref().map_or(batch, |states| states.size()[0]);
        let overwrites = matches!(usage, CacheUse::Overwrite { .. });
        if rows != batch || start < 0 || (overwrites && end > len) {
            return Err(ModelError::CacheMismatch { rows, len, batch, start, end });
        }
        if end > self.max_seq_len() {
            return Err(ModelError::SequenceTooLong { seq_len: end, max_seq_len: self.max_seq_len() });
        }
        let ids = ids.to_device(self.device());
        let positions = Tensor::arange_start(start, end, (Kind::Int64, self.device())).unsqueeze(0);
        let keeps = usage != CacheUse::Peek;
        let raw =
            self.exactly(|| self.transformer.forward_cached(&ids, &positions, &mut cache.layers, start, keeps))?;
        let raw = raw.view([batch, window, -1]);
        let all = match &cache.states {
            Some(states) => spliced(states, &raw, start, 1),
            None => raw.shallow_clone(),
        };
        let states = if self.config.logits_shift() {
            // The state before each token; the first of a text has none before it.
            let before = Tensor::arange_start(start - 1, end - 1, (Kind::Int64, self.device())).clamp_min(0);
            all.index_select(1, &before)
        } else {
            raw
        };
        if keeps {
            cache.states = Some(all);
        }
        Ok(states.reshape([batch * window, -1]))
    }
}
