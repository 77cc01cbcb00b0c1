//! Text and conversations to token ids and labels.

use crate::{
    account::Account,
    answer::{EndGroup, TurnEnd, label_ends},
    batch::IGNORE_INDEX,
    chat::{Conversation, Piece},
    chat_options::Chat,
    chat_stage::{CHAT, CHAT_FORMAT, from_array},
    error::{DataError, Result},
    number::NUMBER,
    plan::ROW,
    row::strings,
    scan::RowMap,
    source::Entry,
    stage::BatchStage,
    step::Tokenize,
};
use datafusion::arrow::{
    array::{Array, ArrayRef, AsArray, Int32Array, ListArray, RecordBatch},
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef},
};
use dlm_tokenizer::{KeepSpecials, Part, Session, Specials, Tokenizer, TokenizerError};
use std::{path::Path, sync::Arc};

/// A document as the model will see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, the beginning and end tokens included.
    pub ids: Vec<i32>,
    /// As long as `ids`: the id where the model must produce it, [`IGNORE_INDEX`] elsewhere.
    pub labels: Vec<i32>,
}

/// Turns documents into tokens, by the options of a tokenize step and of the chat step before it.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    /// What the tokenizer puts before a text by itself, such as the beginning token.
    prefix: Vec<i32>,
    eos: Option<i32>,
    /// Whether documents end with the end token; unset, texts do and conversations say it themselves.
    add_eos: Option<bool>,
    /// Tokens that end a turn.
    eot: Vec<i32>,
}

impl Encoder {
    /// The encoder for a tokenize step, after a chat step if there is one.
    ///
    /// # Errors
    /// [`DataError::NoEnd`] when an end token is asked for and there is none; [`DataError::Tokenizer`] when one of the
    /// `eot_tokens` is none of its tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, path: &Path, step: &Tokenize, chat: Option<&Chat>) -> Result<Self> {
        let eos = tokenizer.special().eos.as_ref().map(|token| signed(token.id));
        if step.add_eos.unwrap_or(chat.is_none_or(Chat::needs_end)) && eos.is_none() {
            return Err(DataError::NoEnd { path: path.to_owned() });
        }
        let id = |text: &String| {
            let id = tokenizer.token_to_id(text);
            id.map(signed).ok_or_else(|| TokenizerError::UnknownToken { text: text.clone() })
        };
        let mut eot = chat.map_or(&[][..], Chat::eot_tokens).iter().map(id).collect::<Result<Vec<_>, _>>()?;
        if eot.is_empty() {
            eot.extend(eos);
        }
        let prefix = prefix(&tokenizer)?;
        Ok(Self { tokenizer, prefix, eos, add_eos: step.add_eos, eot })
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
        if self.add_eos != Some(false) && ids.last() != eos.as_ref() {
            ids.extend(eos);
        }
        Ok(ids.len() - start)
    }

    /// The tokens of a long text in overlapping windows, each with the beginning and the end that a text of its own would have.
    ///
    /// A window has at most `max_tokens` tokens, of which as many as `overlap` are the last of the window before; every one is a
    /// target. Short texts make one window, an empty one makes none.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it.
    ///
    /// # Panics
    /// When beginning, overlap and end leave no room for a token of the text.
    pub fn windows(&self, text: &str, max_tokens: usize, overlap: usize) -> Result<Vec<Tokens>, TokenizerError> {
        let ids: Vec<i32> = self.tokenizer.encode(text, Specials::AsText)?.into_iter().map(signed).collect();
        let end = self.eos.filter(|_| self.add_eos != Some(false));
        let around = self.prefix.len() + usize::from(end.is_some());
        assert!(
            max_tokens > around + overlap,
            "windows of {max_tokens} tokens have no room beside an overlap of {overlap}"
        );
        let room = max_tokens - around;
        let starts = (0..ids.len().saturating_sub(overlap).max(1)).step_by(room - overlap);
        let window = |start: usize| {
            let content = &ids[start..ids.len().min(start + room)];
            let all: Vec<i32> = self.prefix.iter().chain(content).copied().chain(end).collect();
            Tokens { labels: all.clone(), ids: all }
        };
        Ok(if ids.is_empty() { Vec::new() } else { starts.map(window).collect() })
    }

    /// The tokens of a conversation; answers and what ends them are targets.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it.
    pub fn conversation(&self, conversation: &Conversation) -> Result<Tokens, TokenizerError> {
        let mut tokens = Tokens::default();
        if conversation.begins {
            let first = conversation.units.iter().flatten().next();
            tokens.push(&self.prefix, first.is_some_and(|piece| piece.is_answer));
        }
        conversation.units.iter().try_for_each(|unit| self.unit(unit, &mut tokens))?;
        let ends = self.add_eos.unwrap_or(conversation.ends);
        if let Some(eos) = self.eos.filter(|eos| ends && tokens.ids.last() != Some(eos)) {
            tokens.push(&[eos], true);
        }
        Ok(tokens)
    }

    /// Whether a token ends turns or documents.
    pub(crate) fn is_end(&self, id: i32) -> bool {
        self.eos == Some(id) || self.eot.contains(&id)
    }

    /// The tokens that end turns and documents, spelled.
    pub(crate) fn ends(&self) -> Vec<String> {
        let mut ids = self.eot.clone();
        ids.extend(self.eos.filter(|eos| !self.eot.contains(eos)));
        ids.into_iter().filter_map(|id| self.tokenizer.id_to_token(id.cast_unsigned())).collect()
    }

    /// The text of tokens, special ones included.
    pub(crate) fn decoded(&self, ids: &[i32]) -> String {
        let ids: Vec<u32> = ids.iter().map(|id| id.cast_unsigned()).collect();
        self.tokenizer.decode(&ids, KeepSpecials::Yes).unwrap_or_default()
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
        let token_behind = |end: usize| first + encoded.spans.partition_point(|span| span.start < end);
        let mut end = 0;
        let mut turns = Vec::new();
        for piece in pieces {
            end += piece.text.len();
            if piece.turn_end != TurnEnd::default() {
                turns.push((token_behind(end), piece.turn_end));
            }
        }
        let eos = self.eos.as_slice();
        let groups: [EndGroup; 2] = [(&self.eot, |end| end.eot), (eos, |end| end.eos)];
        label_ends(&tokens.ids, &mut tokens.labels, &turns, &groups);
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
    /// One for each chat format; the only one for text.
    pub(crate) encoders: Vec<Encoder>,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) account: Arc<Account>,
    /// Whether documents have numbers, to be passed on.
    pub(crate) is_numbered: bool,
    pub(crate) threads: usize,
}

impl BatchStage for TokenizeStage {
    fn name(&self) -> &'static str {
        "Tokenize"
    }

    fn options(&self) -> String {
        let column = self.text.as_deref().unwrap_or(CHAT);
        let Tokenize { tokenizer, add_eos, special_tokens, .. } = &self.step;
        let roles = special_tokens.iter().map(|(role, text)| format!(", {role}: {text}")).collect::<String>();
        format!("{column} with {}, add_eos: {add_eos:?}{roles}", tokenizer.display())
    }

    fn schema(&self) -> SchemaRef {
        let row = Field::new(ROW, DataType::Int64, false);
        let number = self.is_numbered.then(|| Field::new(NUMBER, DataType::Int64, false));
        let lists = [list_of_int32(INPUT_IDS), list_of_int32(LABELS)];
        Arc::new(Schema::new([row].into_iter().chain(number).chain(lists).collect::<Vec<_>>()))
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn map(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let (batch, made) = match &self.text {
            Some(column) => self.texts(batch, column)?,
            None => self.conversations(batch)?,
        };
        let passed = [ROW, NUMBER].into_iter().filter_map(|name| batch.column_by_name(name).cloned());
        let columns = passed.chain(made).collect();
        Ok(RecordBatch::try_new(self.schema(), columns).expect("the columns are those of the schema"))
    }
}

impl TokenizeStage {
    /// The tokens of a column of texts, which are their own labels: both columns share one piece of memory.
    fn texts(&self, batch: &RecordBatch, column: &str) -> Result<(RecordBatch, [ArrayRef; 2])> {
        let texts = strings(&batch[column]).map_err(DataError::Invalid)?;
        let mut session = self.encoders[0].tokenizer.session();
        let (mut ids, mut lengths) = (Vec::new(), Vec::with_capacity(batch.num_rows()));
        let mut left_out = Vec::new();
        for i in 0..batch.num_rows() {
            let start = ids.len();
            let made = match texts.is_null(i) {
                true => Err(format!("`{column}` is null")),
                false => {
                    let length = self.encoders[0].append_text(&mut session, texts.value(i), &mut ids);
                    length.map_err(|error| error.to_string())
                }
            };
            match made {
                Ok(length) => lengths.push(length),
                Err(message) => {
                    ids.truncate(start);
                    left_out.push((i, self.leave_out(batch, i, message)?));
                }
            }
        }
        let (batch, _) = self.account.without(batch, left_out)?;
        self.account.tokenized(&batch, &lengths);
        let ids = list_array(ids.into_iter().map(signed).collect(), lengths);
        Ok((batch, [Arc::clone(&ids), ids]))
    }

    /// The tokens and the labels of a column of conversations.
    fn conversations(&self, batch: &RecordBatch) -> Result<(RecordBatch, [ArrayRef; 2])> {
        let formats = batch[CHAT_FORMAT].as_primitive::<Int32Type>();
        let (mut documents, mut left_out) = (Vec::with_capacity(batch.num_rows()), Vec::new());
        for i in 0..batch.num_rows() {
            let format = usize::try_from(formats.value(i)).expect("formats are counted from 0");
            match self.encoders[format].conversation(&from_array(&batch[CHAT], i)) {
                Ok(tokens) => documents.push(tokens),
                Err(error) => left_out.push((i, self.leave_out(batch, i, error.to_string())?)),
            }
        }
        let (batch, _) = self.account.without(batch, left_out)?;
        let lengths: Vec<usize> = documents.iter().map(|document| document.ids.len()).collect();
        self.account.tokenized(&batch, &lengths);
        let ids = int32_lists(documents.iter().map(|document| document.ids.as_slice()));
        let labels = int32_lists(documents.iter().map(|document| document.labels.as_slice()));
        Ok((batch, [ids, labels]))
    }

    /// What is listed of a row of a batch that is left out; the error for one that cannot be.
    fn leave_out(&self, batch: &RecordBatch, i: usize, message: String) -> Result<Entry> {
        self.rows.leave_out(batch[ROW].as_primitive::<Int64Type>().value(i), message)
    }
}
