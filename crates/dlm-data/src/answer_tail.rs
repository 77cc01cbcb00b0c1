//! The `answer_tail` step: tokens behind an answer that teach a model where to stop.

use crate::{
    account::Account,
    answer::{END_WITHIN, is_target},
    cut::END_CUT,
    error::{DataError, Result},
    plan::ROW,
    shuffle::keyed,
    stage::BatchStage,
    tokenize::{INPUT_IDS, LABELS, Tokens, int32_lists, signed},
};
use datafusion::arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    datatypes::{Field, Int32Type, Int64Type, SchemaRef},
};
use dlm_tokenizer::{Tokenizer, TokenizerError};
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};

/// What follows an answer, and is a target like it.
///
/// A sampler fills a canvas that is longer than the answer, so the model has to know what to put behind it. The one end token of
/// a document teaches that only for the place right behind the answer. A tail never makes a document longer than a row, and a
/// document that does not end with an answer gets none, nor does one whose end `truncate` or `chunk` cut off. What a chat template
/// writes behind the end of the last answer, such as a line end, becomes part of the tail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AnswerTail {
    /// Nothing.
    #[default]
    None,
    /// End tokens until the last answer fills its last block, for models that generate block by block.
    Block {
        /// Tokens in a block.
        block_length: usize,
    },
    /// A random number of end tokens, between none and `max`, all equally likely.
    Random {
        /// The largest number.
        max: usize,
        /// Chooses the numbers, together with the document.
        #[serde(default)]
        seed: u64,
    },
    /// A fixed number of end tokens (LLaDA fills its batches up with them).
    Fixed {
        /// The number.
        length: usize,
    },
    /// Different tokens in turn, which keeps end tokens rare ([arXiv:2510.03680](https://arxiv.org/abs/2510.03680)).
    Rainbow {
        /// The tokens, which the tokenizer has to have and no text needs.
        tokens: Vec<String>,
        /// How many tokens follow.
        length: usize,
    },
}

impl AnswerTail {
    /// The tokens that it appends, in turn.
    ///
    /// # Errors
    /// [`DataError::NoEnd`] when the tokenizer has no end token; [`DataError::Tokenizer`] when it lacks one of the rainbow's.
    pub fn ids(&self, tokenizer: &Tokenizer, path: &Path) -> Result<Vec<i32>> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Rainbow { tokens, .. } => {
                let id = |text: &String| {
                    let id = tokenizer.token_to_id(text);
                    id.map(signed).ok_or_else(|| TokenizerError::UnknownToken { text: text.clone() }.into())
                };
                tokens.iter().map(id).collect()
            }
            Self::Block { .. } | Self::Random { .. } | Self::Fixed { .. } => {
                let eos = tokenizer.special().eos.as_ref().ok_or_else(|| DataError::NoEnd { path: path.to_owned() })?;
                Ok(vec![signed(eos.id)])
            }
        }
    }

    /// Appends the tail to the document of this number, `ids` in turn, and returns how many tokens it has.
    ///
    /// The document is no longer than `sequence_len` afterwards, if it was not before.
    pub fn append(&self, tokens: &mut Tokens, document: u64, ids: &[i32], sequence_len: usize) -> usize {
        let len = tokens.ids.len();
        let Some(last) = tokens.labels.iter().rposition(|label| is_target(*label)) else { return 0 };
        if len - 1 - last > END_WITHIN || ids.is_empty() {
            return 0;
        }
        let wanted = match self {
            Self::None => 0,
            Self::Block { block_length } => {
                let before = tokens.labels[..last].iter().rposition(|label| !is_target(*label));
                let answer = len - before.map_or(0, |before| before + 1);
                answer.next_multiple_of(*block_length) - answer
            }
            Self::Random { max, seed } => {
                let choices = *max as u128 + 1;
                // The upper half of a product is an equally likely number below the factor.
                usize::try_from((u128::from(keyed(*seed, document)) * choices) >> 64).expect("it is at most `max`")
            }
            Self::Fixed { length } | Self::Rainbow { length, .. } => *length,
        };
        let added = wanted.min(sequence_len.saturating_sub(len));
        if added > 0 {
            let tail = ids.iter().copied().cycle().take(added);
            tokens.ids.extend(tail);
            tokens.labels.truncate(last + 1);
            tokens.labels.extend_from_slice(&tokens.ids[last + 1..]);
        }
        added
    }

    /// Says what is wrong with the options.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |message: &str| Err(DataError::pipeline(format!("answer_tail: {message}")));
        match self {
            Self::Block { block_length: 0 } => wrong("`block_length` is 0, and has to be 1 or more"),
            Self::Random { max: 0, .. } => wrong("`max` is 0, and has to be 1 or more"),
            Self::Fixed { length: 0 } | Self::Rainbow { length: 0, .. } => {
                wrong("`length` is 0, and has to be 1 or more")
            }
            Self::Rainbow { tokens, .. } if tokens.len() < 2 => wrong("a rainbow has two `tokens` or more"),
            Self::Rainbow { tokens, .. } => match (1..tokens.len()).find(|i| tokens[..*i].contains(&tokens[*i])) {
                Some(again) => wrong(&format!("`tokens` has `{}` twice", tokens[again])),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// The step in a plan.
#[derive(Debug)]
pub(crate) struct AnswerTailStage {
    pub(crate) tail: AnswerTail,
    pub(crate) ids: Vec<i32>,
    pub(crate) sequence_len: usize,
    pub(crate) input: SchemaRef,
    pub(crate) account: Arc<Account>,
    pub(crate) threads: usize,
}

impl BatchStage for AnswerTailStage {
    fn name(&self) -> &'static str {
        "AnswerTail"
    }

    fn options(&self) -> String {
        format!("{:?}", self.tail)
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.input)
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn map(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = batch[ROW].as_primitive::<Int64Type>();
        let list =
            |name: &str, i: usize| batch[name].as_list::<i32>().value(i).as_primitive::<Int32Type>().values().to_vec();
        // Behind a place where a document was cut there is more of it, and nothing that says to stop.
        let ends_cut = batch.column_by_name(END_CUT).map(AsArray::as_boolean);
        let document = |i: usize| {
            let mut tokens = Tokens { ids: list(INPUT_IDS, i), labels: list(LABELS, i) };
            if ends_cut.is_some_and(|cut| cut.value(i)) {
                return (tokens, 0);
            }
            let added = self.tail.append(&mut tokens, rows.value(i).cast_unsigned(), &self.ids, self.sequence_len);
            (tokens, added as u64)
        };
        let (documents, added): (Vec<Tokens>, Vec<u64>) = (0..batch.num_rows()).map(document).unzip();
        self.account.added_tokens(batch, "answer_tail", added.into_iter().enumerate());
        let column = |field: &Arc<Field>| -> ArrayRef {
            match field.name().as_str() {
                INPUT_IDS => int32_lists(documents.iter().map(|document| document.ids.as_slice())),
                LABELS => int32_lists(documents.iter().map(|document| document.labels.as_slice())),
                name => Arc::clone(&batch[name]),
            }
        };
        let columns = self.input.fields().iter().map(column).collect();
        Ok(RecordBatch::try_new(Arc::clone(&self.input), columns).expect("the columns are those of the schema"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::IGNORE_INDEX;
    use std::collections::BTreeSet;

    const EOS: i32 = 9;

    /// A prompt of three tokens, an answer of four.
    fn document() -> Tokens {
        Tokens { ids: vec![1, 2, 3, 4, 5, 6, EOS], labels: vec![-100, -100, -100, 4, 5, 6, EOS] }
    }

    fn tailed(tail: &AnswerTail, mut tokens: Tokens, number: u64, sequence_len: usize) -> Tokens {
        let ids = if matches!(tail, AnswerTail::Rainbow { .. }) { vec![20, 21, 22] } else { vec![EOS] };
        let len = tokens.ids.len();
        let added = tail.append(&mut tokens, number, &ids, sequence_len);
        assert_eq!(tokens.ids.len(), len + added);
        assert_eq!(tokens.labels.len(), tokens.ids.len());
        tokens
    }

    #[test]
    fn a_block_is_counted_from_the_beginning_of_the_last_answer() {
        for (block_length, added) in [(1, 0), (2, 0), (3, 2), (4, 0), (8, 4), (32, 28)] {
            let tokens = tailed(&AnswerTail::Block { block_length }, document(), 0, 100);
            assert_eq!(tokens.ids.len(), 7 + added, "blocks of {block_length}");
            assert!(tokens.ids[7..].iter().chain(&tokens.labels[7..]).all(|id| *id == EOS));
            assert_eq!(tokens.labels[..7], document().labels);
        }
    }

    #[test]
    fn a_rainbow_goes_through_its_tokens_again_and_again() {
        let tail = AnswerTail::Rainbow { tokens: vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], length: 5 };
        let tokens = tailed(&tail, document(), 0, 100);
        assert_eq!(tokens.ids[7..], [20, 21, 22, 20, 21]);
        assert_eq!(tokens.labels[7..], tokens.ids[7..]);
    }

    #[test]
    fn random_numbers_depend_on_seed_and_document_alone_and_all_occur() {
        let len = |seed, number| tailed(&AnswerTail::Random { max: 5, seed }, document(), number, 100).ids.len() - 7;
        let lengths: Vec<usize> = (0..200).map(|number| len(0, number)).collect();
        assert_eq!(lengths.iter().copied().collect::<BTreeSet<_>>(), (0..=5).collect());
        assert_eq!(lengths, (0..200).map(|number| len(0, number)).collect::<Vec<_>>());
        assert_ne!(lengths, (0..200).map(|number| len(1, number)).collect::<Vec<_>>());
    }

    #[test]
    fn a_tail_ends_with_the_row() {
        assert_eq!(tailed(&AnswerTail::Fixed { length: 50 }, document(), 0, 10).ids.len(), 10);
        assert_eq!(tailed(&AnswerTail::Fixed { length: 50 }, document(), 0, 7), document());
        assert_eq!(tailed(&AnswerTail::Fixed { length: 50 }, document(), 0, 3), document());
    }

    #[test]
    fn what_the_template_writes_behind_the_answer_becomes_a_target_and_other_words_get_no_tail() {
        let behind = |words: &[i32]| {
            let mut tokens = document();
            tokens.ids.extend(words);
            tokens.labels.resize(tokens.ids.len(), IGNORE_INDEX);
            tokens
        };
        let tokens = tailed(&AnswerTail::Fixed { length: 2 }, behind(&[7]), 0, 100);
        assert_eq!(tokens.labels[6..], [EOS, 7, EOS, EOS]);
        assert_eq!(tailed(&AnswerTail::Fixed { length: 2 }, behind(&[7; 4]), 0, 100), behind(&[7; 4]));
        let prompt = Tokens { ids: vec![1, 2], labels: vec![IGNORE_INDEX; 2] };
        assert_eq!(tailed(&AnswerTail::Fixed { length: 2 }, prompt.clone(), 0, 100), prompt);
    }

    #[test]
    fn options_without_sense_are_refused() {
        let rainbow = |tokens: &[&str]| AnswerTail::Rainbow {
            tokens: tokens.iter().map(|token| (*token).to_owned()).collect(),
            length: 3,
        };
        for (tail, message) in [
            (AnswerTail::Block { block_length: 0 }, "`block_length` is 0"),
            (AnswerTail::Random { max: 0, seed: 0 }, "`max` is 0"),
            (AnswerTail::Fixed { length: 0 }, "`length` is 0"),
            (rainbow(&["a"]), "two `tokens`"),
            (rainbow(&["a", "b", "a"]), "`tokens` has `a` twice"),
        ] {
            let error = tail.check().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(rainbow(&["a", "b"]).check().is_ok());
    }
}
