//! Text and conversations to token ids and labels.

use crate::{
    account::Account,
    answer::label_ends,
    batch::IGNORE_INDEX,
    chat::{CHAT, Conversation, Piece, from_array, strings},
    error::{DataError, Result},
    number::NUMBER,
    plan::ROW,
    scan::RowMap,
    stage::{Stage, map_in_order},
    step::{Chat, Tokenize},
};
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, Int32Array, ListArray, RecordBatch},
        buffer::OffsetBuffer,
        datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
    },
    execution::{SendableRecordBatchStream, TaskContext},
};
use dlm_tokenizer::{Part, Session, Specials, Tokenizer, TokenizerError};
use std::{path::Path, sync::Arc};

/// A document as the model will see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, the beginning and end tokens included.
    pub ids: Vec<i32>,
    /// As long as `ids`: the id where the model must produce it, [`IGNORE_INDEX`] elsewhere.
    pub labels: Vec<i32>,
}

/// When a document gets the end token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Never,
    Always,
    /// Not behind an empty answer (Axolotl's rule for Alpaca).
    BehindAnswers,
}

/// Turns documents into tokens, by the options of a tokenize step and of the chat step before it.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    /// What the tokenizer puts before a text by itself, such as the beginning token.
    prefix: Vec<i32>,
    eos: Option<i32>,
    end: End,
    /// Tokens that end a turn and belong to the answer before them; of each group the first that follows.
    turn_ends: Vec<Vec<i32>>,
}

impl Encoder {
    /// The encoder for a tokenize step, after a chat step if there is one.
    ///
    /// # Errors
    /// [`DataError::NoEnd`] when an end token is asked for and there is none; [`DataError::Tokenizer`] when an
    /// `eot_tokens` is none of its tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, path: &Path, step: &Tokenize, chat: Option<&Chat>) -> Result<Self> {
        let end = match (step.add_eos, chat) {
            (Some(false), _) | (None, Some(Chat::Messages(_))) => End::Never,
            (None, Some(Chat::Alpaca(_))) => End::BehindAnswers,
            (Some(true), _) | (None, None) => End::Always,
        };
        let eos = tokenizer.special().eos.as_ref().map(|token| signed(token.id));
        if end != End::Never && eos.is_none() {
            return Err(DataError::NoEnd { path: path.to_owned() });
        }
        let mut turn_ends: Vec<Vec<i32>> = Vec::new();
        if let Some(Chat::Messages(messages)) = chat {
            let id = |text: &String| {
                let id = tokenizer.token_to_id(text);
                id.map(signed).ok_or_else(|| TokenizerError::UnknownToken { text: text.clone() })
            };
            turn_ends.push(messages.eot_tokens.iter().map(id).collect::<Result<_, _>>()?);
            turn_ends.push(eos.into_iter().collect());
        }
        // A chat template writes its own beginning; everything else gets the tokenizer's.
        let prefix = if matches!(chat, Some(Chat::Messages(_))) { Vec::new() } else { prefix(&tokenizer)? };
        Ok(Self { tokenizer, prefix, eos, end, turn_ends })
    }

    /// The tokens of a text; every one is a target. An empty text has none.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it.
    pub fn text(&self, text: &str) -> Result<Tokens, TokenizerError> {
        let mut ids = Vec::new();
        self.append_text(&mut self.tokenizer.session(), text, &mut ids)?;
        let ids: Vec<i32> = ids.into_iter().map(signed).collect();
        Ok(Tokens { labels: ids.clone(), ids })
    }

    /// Appends the tokens of a text, and returns how many there are.
    fn append_text(&self, session: &mut Session, text: &str, ids: &mut Vec<u32>) -> Result<usize, TokenizerError> {
        let start = ids.len();
        ids.extend(self.prefix.iter().map(|id| id.cast_unsigned()));
        let before = ids.len();
        session.encode_into(text, Specials::AsText, ids)?;
        if ids.len() == before {
            ids.truncate(start);
            return Ok(0);
        }
        let eos = self.eos.map(i32::cast_unsigned);
        if self.end != End::Never && ids.last() != eos.as_ref() {
            ids.extend(eos);
        }
        Ok(ids.len() - start)
    }

    /// The tokens of a conversation; answers and what ends them are targets.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it.
    pub fn conversation(&self, conversation: &Conversation) -> Result<Tokens, TokenizerError> {
        let mut tokens = Tokens::default();
        let begins_with_answer =
            conversation.units.first().and_then(|unit| unit.first()).is_some_and(|piece| piece.is_answer);
        tokens.push(&self.prefix, begins_with_answer);
        conversation.units.iter().try_for_each(|unit| self.unit(unit, &mut tokens))?;
        let ends = match self.end {
            End::Never => false,
            End::Always => true,
            End::BehindAnswers => conversation.units.len() > 1,
        };
        if let Some(eos) = self.eos.filter(|eos| ends && tokens.ids.last() != Some(eos)) {
            tokens.push(&[eos], true);
        }
        Ok(tokens)
    }

    fn unit(&self, pieces: &[Piece], tokens: &mut Tokens) -> Result<(), TokenizerError> {
        let parts: Vec<Part> =
            pieces.iter().map(|piece| Part { text: piece.text.clone(), specials: piece.specials }).collect();
        let encoded = self.tokenizer.encode_parts(&parts)?;
        let mut answers = Vec::new();
        let mut start = 0;
        for piece in pieces {
            let end = start + piece.text.len();
            if piece.is_answer {
                answers.push(start..end);
            }
            start = end;
        }
        let first = tokens.ids.len();
        for (id, is_answer) in encoded.ids.iter().zip(encoded.within(&answers)) {
            tokens.push(&[signed(*id)], is_answer);
        }
        if !self.turn_ends.is_empty() {
            let token_behind = |end: usize| first + encoded.spans.partition_point(|span| span.start < end);
            let behind: Vec<usize> = answers.iter().map(|answer| token_behind(answer.end)).collect();
            for ends in &self.turn_ends {
                label_ends(&tokens.ids, &mut tokens.labels, &behind, ends);
            }
        }
        Ok(())
    }
}

impl Tokens {
    fn push(&mut self, ids: &[i32], is_answer: bool) {
        self.ids.extend_from_slice(ids);
        self.labels.extend(ids.iter().map(|id| if is_answer { *id } else { IGNORE_INDEX }));
    }
}

/// What the tokenizer's own post-processing puts before a text.
fn prefix(tokenizer: &Tokenizer) -> Result<Vec<i32>> {
    const PROBE: &str = "a";
    let plain = tokenizer.encode(PROBE, Specials::AsText)?;
    let framed = tokenizer.encode_with_post_processor(PROBE, Specials::AsText)?;
    let start = framed.windows(plain.len().max(1)).position(|window| window == plain).unwrap_or(0);
    Ok(framed[..start].iter().copied().map(signed).collect())
}

/// A token id as Parquet and batches hold it; vocabularies are far smaller than 2^31.
pub(crate) fn signed(id: u32) -> i32 {
    i32::try_from(id).expect("a vocabulary has fewer than 2^31 tokens")
}

/// The columns that the tokenize step makes.
pub(crate) const INPUT_IDS: &str = "input_ids";
pub(crate) const LABELS: &str = "labels";

/// A list of 32-bit numbers.
pub(crate) fn list_of_int32(name: &str) -> Field {
    Field::new(name, DataType::List(Arc::new(Field::new("item", DataType::Int32, false))), false)
}

/// Lists of 32-bit numbers as a column.
pub(crate) fn int32_lists<'a>(lists: impl Iterator<Item = &'a [i32]> + Clone) -> ArrayRef {
    let mut values = Vec::with_capacity(lists.clone().map(<[i32]>::len).sum());
    lists.clone().for_each(|list| values.extend_from_slice(list));
    list_array(values, lists.map(<[i32]>::len))
}

/// Lists of these lengths, which stand one behind the other in `values`, as a column.
fn list_array(values: Vec<i32>, lengths: impl IntoIterator<Item = usize>) -> ArrayRef {
    let item = Arc::new(Field::new("item", DataType::Int32, false));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Arc::new(ListArray::new(item, offsets, Arc::new(Int32Array::from(values)), None))
}

/// The tokenize step in a plan: the row's number, `input_ids` and `labels` come out.
#[derive(Debug)]
pub(crate) struct TokenizeStage {
    pub(crate) step: Tokenize,
    /// The column of text; none when there is a conversation.
    pub(crate) text: Option<String>,
    pub(crate) encoder: Encoder,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) account: Arc<Account>,
    /// Whether documents have numbers, to be passed on.
    pub(crate) is_numbered: bool,
    pub(crate) threads: usize,
}

impl Stage for TokenizeStage {
    fn name(&self) -> &'static str {
        "Tokenize"
    }

    fn options(&self) -> String {
        let column = self.text.as_deref().unwrap_or(CHAT);
        format!("{column} with {}, end: {:?}", self.step.tokenizer.display(), self.encoder.end)
    }

    fn schema(&self) -> SchemaRef {
        let row = Field::new(ROW, DataType::Int64, false);
        let number = self.is_numbered.then(|| Field::new(NUMBER, DataType::Int64, false));
        let lists = [list_of_int32(INPUT_IDS), list_of_int32(LABELS)];
        Arc::new(Schema::new([row].into_iter().chain(number).chain(lists).collect::<Vec<_>>()))
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        _: &Arc<TaskContext>,
    ) -> datafusion::error::Result<SendableRecordBatchStream> {
        let (schema, threads) = (self.schema(), self.threads);
        Ok(map_in_order(input, schema, threads, move |batch| self.map(batch)))
    }
}

impl TokenizeStage {
    fn map(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let made = match &self.text {
            Some(column) => self.texts(batch, column)?,
            None => self.conversations(batch)?,
        };
        let passed = [ROW, NUMBER].into_iter().filter_map(|name| batch.column_by_name(name).cloned());
        let columns = passed.chain(made).collect();
        Ok(RecordBatch::try_new(self.schema(), columns).expect("the columns are those of the schema"))
    }

    /// The tokens of a column of texts, which are their own labels: both columns share one piece of memory.
    fn texts(&self, batch: &RecordBatch, column: &str) -> Result<[ArrayRef; 2]> {
        let texts = strings(&batch[column]).map_err(DataError::Invalid)?;
        let mut session = self.encoder.tokenizer.session();
        let (mut ids, mut lengths) = (Vec::new(), Vec::with_capacity(batch.num_rows()));
        for i in 0..batch.num_rows() {
            if texts.is_null(i) {
                return Err(self.bad(batch, i, format!("`{column}` is null")));
            }
            let length = self.encoder.append_text(&mut session, texts.value(i), &mut ids);
            lengths.push(length.map_err(|error| self.bad(batch, i, error.to_string()))?);
        }
        self.account.tokenized(batch, &lengths);
        let ids = list_array(ids.into_iter().map(signed).collect(), lengths);
        Ok([Arc::clone(&ids), ids])
    }

    /// The tokens and the labels of a column of conversations.
    fn conversations(&self, batch: &RecordBatch) -> Result<[ArrayRef; 2]> {
        let encode = |i| {
            let tokens = self.encoder.conversation(&from_array(&batch[CHAT], i));
            tokens.map_err(|error| self.bad(batch, i, error.to_string()))
        };
        let documents = (0..batch.num_rows()).map(encode).collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = documents.iter().map(|document| document.ids.len()).collect();
        self.account.tokenized(batch, &lengths);
        let ids = int32_lists(documents.iter().map(|document| document.ids.as_slice()));
        Ok([ids, int32_lists(documents.iter().map(|document| document.labels.as_slice()))])
    }

    /// The error for a row of a batch that cannot be used.
    fn bad(&self, batch: &RecordBatch, i: usize, message: String) -> DataError {
        self.rows.error(batch[ROW].as_primitive::<Int64Type>().value(i), message)
    }
}
