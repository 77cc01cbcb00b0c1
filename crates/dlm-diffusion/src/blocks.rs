//! Block diffusion: how long blocks are, over the steps of a run, and which state predicts the first token of a block.

use crate::{
    batch::CleanBatch,
    error::{DiffusionError, Result},
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use tch::Device;

/// Which state predicts the first token of a block in a checkpoint with a logits shift, whose state at `i - 1` predicts the token at
/// `i`. The choice belongs to the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockStart {
    /// The state of the clean token before the block, which a cache holds when the block is begun: cached decoding equals uncached.
    #[default]
    Clean,
    /// The state of the noised token before the block, as plain code that shifts the logits of the noised half has it (dllm's
    /// BD3-LM trainer, Fast-dLLM v2's training). At inference nothing is noised there any more.
    Noisy,
}

/// What becomes of a document that whole blocks do not fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastBlock {
    /// Its last block is shorter.
    #[default]
    Shorter,
    /// It is refused: for data whose documents were filled up to whole blocks, as the sampler of a model that is always shown whole
    /// ones needs.
    Whole,
}

/// Refuses a document whose length the block length does not divide.
pub(crate) fn expect_whole_blocks(clean: &CleanBatch, block_length: i64) -> Result<()> {
    let (batch, seq_len) = clean.shape();
    let n = (batch * seq_len) as usize;
    let mut segments = vec![1i64; n];
    if let Some(ids) = clean.segment_ids() {
        ids.to_device(Device::Cpu).contiguous().copy_data(&mut segments, n);
    }
    for (row, segments) in segments.chunks(seq_len as usize).enumerate() {
        let mut position = 0;
        for document in segments.chunk_by(|a, b| a == b) {
            let len = document.len();
            if document[0] > 0 && len as i64 % block_length != 0 {
                return Err(DiffusionError::UnevenBlocks { row: row as i64, position, len, block_length });
            }
            position += len;
        }
    }
    Ok(())
}

/// Block lengths over the steps of a run: `0:1, 500:4, 1000:32` is 1 from step 0, 4 from step 500 and 32 from step 1000 on.
///
/// LLaDA2.0 warms up from blocks of one token, which is next to autoregressive, to whole rows, and decays to short blocks at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockLengths(Vec<(u64, i64)>);

impl BlockLengths {
    /// The same length at every step.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`] for a length below 1.
    pub fn constant(block_length: i64) -> Result<Self> {
        expect_block_length(block_length)?;
        Ok(Self(vec![(0, block_length)]))
    }

    /// The length in effect at a step, counted from 0.
    #[must_use]
    pub fn at(&self, step: u64) -> i64 {
        let in_effect = self.0.iter().rev().find(|(from, _)| *from <= step);
        in_effect.map_or(1, |(_, block_length)| *block_length)
    }

    /// The length in effect at the end.
    #[must_use]
    pub fn last(&self) -> i64 {
        self.at(u64::MAX)
    }
}

pub(crate) fn expect_block_length(block_length: i64) -> Result<()> {
    if block_length >= 1 {
        return Ok(());
    }
    Err(DiffusionError::OutOfRange { name: "block_length", value: block_length as f64, expected: "at least 1" })
}

impl FromStr for BlockLengths {
    type Err = DiffusionError;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || DiffusionError::BlockLengths { found: text.to_owned() };
        if let Ok(block_length) = text.trim().parse() {
            return Self::constant(block_length);
        }
        let stage = |part: &str| {
            let (step, block_length) = part.split_once(':')?;
            Some((step.trim().parse().ok()?, block_length.trim().parse().ok()?))
        };
        let stages: Vec<(u64, i64)> = text.split(',').map(stage).collect::<Option<_>>().ok_or_else(refuse)?;
        stages.iter().try_for_each(|(_, block_length)| expect_block_length(*block_length))?;
        let is_rising = stages.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if is_rising && stages[0].0 == 0 { Ok(Self(stages)) } else { Err(refuse()) }
    }
}

impl TryFrom<String> for BlockLengths {
    type Error = DiffusionError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BlockLengths> for String {
    fn from(lengths: BlockLengths) -> Self {
        lengths.to_string()
    }
}

impl fmt::Display for BlockLengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(0, block_length)] = self.0[..] {
            return write!(f, "{block_length}");
        }
        let stages: Vec<String> = self.0.iter().map(|(step, length)| format!("{step}:{length}")).collect();
        f.write_str(&stages.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_in_effect_from_its_step_on() {
        let lengths: BlockLengths = "0:1, 500:4,1000:32".parse().unwrap();
        assert_eq!([0, 499, 500, 999, 1000, 5000].map(|step| lengths.at(step)), [1, 1, 4, 4, 32, 32]);
        assert_eq!((lengths.last(), lengths.to_string().as_str()), (32, "0:1, 500:4, 1000:32"));
        let constant: BlockLengths = "32".parse().unwrap();
        assert_eq!((constant.at(0), constant.at(9), constant.to_string().as_str()), (32, 32, "32"));
        assert_eq!(serde_json::from_value::<BlockLengths>(serde_json::to_value(&lengths).unwrap()).unwrap(), lengths);
    }

    #[test]
    fn lists_that_say_nothing_of_some_step_or_have_empty_blocks_are_refused() {
        for text in ["", "5:4", "0:4,0:8", "0:4,9:8,3:2", "0:0", "-3", "0", "a:b", "0:4;5:6"] {
            assert!(text.parse::<BlockLengths>().is_err(), "{text}");
        }
    }
}
