//! Rows to conversations: what is prompt and what is answer, and whose words may hold special tokens.

use crate::{
    answer::mark_answers,
    scan::RowMap,
    stage::{Stage, map_in_order},
    step::{Alpaca, AlpacaStyle, Chat, Messages},
};
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, BooleanArray, Int32Array, ListArray, RecordBatch, StringArray, StructArray},
        buffer::OffsetBuffer,
        compute::cast,
        datatypes::{DataType, Field, Fields, Float64Type, Int32Type, Int64Type, Schema, SchemaRef},
    },
    execution::{SendableRecordBatchStream, TaskContext},
};
use dlm_tokenizer::{Message, Specials, Tokenizer};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A conversation in pieces, before it is tokenized.
///
/// Each unit is encoded by itself (Alpaca's prompt and answer are two, as in Axolotl); the pieces of a unit are encoded together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The units in order.
    pub units: Vec<Vec<Piece>>,
}

/// Some text of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether special tokens may be spelled in it: in a template's words yes, in people's no.
    pub specials: Specials,
    /// Whether the model must produce it.
    pub is_answer: bool,
}

impl Conversation {
    /// Everything that is said, special tokens spelled out.
    #[must_use]
    pub fn text(&self) -> String {
        self.units.iter().flatten().map(|piece| piece.text.as_str()).collect()
    }

    /// An Alpaca row as Axolotl words it: a prompt and, unless it is empty, an answer.
    #[must_use]
    pub fn alpaca(instruction: &str, input: &str, output: &str, options: &Alpaca) -> Self {
        let words = wording(options.style, !input.is_empty());
        let mut prompt: Vec<Piece> = Vec::new();
        let mut push = |text: &str, specials| {
            if !text.is_empty() {
                prompt.push(Piece { text: text.to_owned(), specials, is_answer: options.train_on_inputs });
            }
        };
        push(words.before, Specials::Parse);
        push(instruction, Specials::AsText);
        push(words.between, Specials::Parse);
        push(input, Specials::AsText);
        push(words.after, Specials::Parse);
        let mut units = vec![prompt];
        if !output.is_empty() {
            units.push(vec![Piece { text: output.to_owned(), specials: Specials::AsText, is_answer: true }]);
        }
        Self { units }
    }

    /// Messages as the tokenizer's chat template renders them, the assistant's turns labelled as answers.
    ///
    /// # Errors
    /// A sentence when there is no template, when it refuses the conversation, or when it leaves an answer out.
    pub fn messages(tokenizer: &Tokenizer, messages: &[Message], options: &Messages) -> Result<Self, String> {
        Ok(Self { units: vec![mark_answers(tokenizer, messages, options)?] })
    }
}

/// A prompt's own words around the row's.
struct Wording {
    before: &'static str,
    between: &'static str,
    after: &'static str,
}

macro_rules! with_input {
    () => {
        "Below is an instruction that describes a task, paired with an input that provides further context. \
         Write a response that appropriately completes the request."
    };
}

macro_rules! without_input {
    () => {
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    };
}

fn wording(style: AlpacaStyle, has_input: bool) -> Wording {
    let (before, between, after) = match (style, has_input) {
        (AlpacaStyle::Instruct, true) => {
            (concat!(with_input!(), "\n\n### Instruction:\n"), "\n\n### Input:\n", "\n\n### Response:\n")
        }
        (AlpacaStyle::Instruct, false) => {
            (concat!(without_input!(), "\n\n### Instruction:\n"), "", "\n\n### Response:\n")
        }
        (AlpacaStyle::Chat, true) => (concat!("SYSTEM: ", with_input!(), "\nUSER: "), "\n", "\nASSISTANT:"),
        (AlpacaStyle::Chat, false) => (concat!("SYSTEM: ", without_input!(), "\nUSER: "), "", "\nASSISTANT:"),
        (AlpacaStyle::Chatml, true) => (
            concat!("<|im_start|>system\n", with_input!(), "<|im_end|>\n<|im_start|>user\n"),
            "\n",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        (AlpacaStyle::Chatml, false) => (
            concat!("<|im_start|>system\n", without_input!(), "<|im_end|>\n<|im_start|>user\n"),
            "",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        (AlpacaStyle::Phi, true) => {
            (concat!("<|system|>\n", with_input!(), "<|end|>\n<|user|>\n"), "<|end|>", "<|assistant|>")
        }
        (AlpacaStyle::Phi, false) => {
            (concat!("<|system|>\n", without_input!(), "<|end|>\n<|user|>\n"), "", "<|end|>\n<|assistant|>\n")
        }
    };
    Wording { before, between, after }
}

/// The column that the chat step makes.
pub(crate) const CHAT: &str = "chat";

/// The chat step in a plan: adds the column `chat` with the pieces of the conversation.
#[derive(Debug)]
pub(crate) struct ChatStage {
    pub(crate) chat: Chat,
    pub(crate) input: SchemaRef,
    /// Renders messages; loaded because the tokenize step names it.
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) threads: usize,
}

impl Stage for ChatStage {
    fn name(&self) -> &'static str {
        "Chat"
    }

    fn options(&self) -> String {
        match &self.chat {
            Chat::Alpaca(alpaca) => format!("alpaca {:?}, train_on_inputs={}", alpaca.style, alpaca.train_on_inputs),
            Chat::Messages(messages) => format!(
                "messages of `{}`, eot_tokens={:?}, train_on_inputs={}",
                messages.column, messages.eot_tokens, messages.train_on_inputs
            ),
        }
    }

    fn schema(&self) -> SchemaRef {
        let others = self.input.fields().iter().filter(|field| field.name() != CHAT).cloned();
        let chat = Field::new(CHAT, list_type(), false);
        Arc::new(Schema::new(others.chain([Arc::new(chat)]).collect::<Fields>()))
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

impl ChatStage {
    fn map(&self, batch: &RecordBatch) -> crate::Result<RecordBatch> {
        let rows = batch[crate::plan::ROW].as_primitive::<Int64Type>();
        let conversations = match &self.chat {
            Chat::Alpaca(options) => self.alpaca(batch, options),
            Chat::Messages(options) => {
                let column = &batch[options.column.as_str()];
                let convert = |i: usize| {
                    let messages = messages_of(column, i)?;
                    Conversation::messages(&self.tokenizer, &messages, options)
                };
                (0..batch.num_rows()).map(|i| convert(i).map_err(|message| (i, message))).collect()
            }
        }
        .map_err(|(i, message): (usize, String)| self.rows.error(rows.value(i), message))?;
        let schema = self.schema();
        let column = |field: &Arc<Field>| match field.name().as_str() {
            CHAT => to_array(&conversations),
            name => Arc::clone(&batch[name]),
        };
        let columns = schema.fields().iter().map(column).collect();
        Ok(RecordBatch::try_new(Arc::clone(&schema), columns).expect("the columns are those of the schema"))
    }

    fn alpaca(&self, batch: &RecordBatch, options: &Alpaca) -> Result<Vec<Conversation>, (usize, String)> {
        let column = |name: &str| batch.column_by_name(name).map(strings).transpose().map_err(|message| (0, message));
        let (instruction, input, output) = (column("instruction")?, column("input")?, column("output")?);
        let cell = |column: &Option<StringArray>, name: &str, i: usize| match column {
            Some(column) if !column.is_null(i) => Ok(column.value(i).to_owned()),
            _ if name == "input" => Ok(String::new()),
            _ => Err((i, format!("`{name}` is null"))),
        };
        (0..batch.num_rows())
            .map(|i| {
                let (instruction, output) = (cell(&instruction, "instruction", i)?, cell(&output, "output", i)?);
                Ok(Conversation::alpaca(&instruction, &cell(&input, "input", i)?, &output, options))
            })
            .collect()
    }
}

/// A column as text, whatever type of text it has.
pub(crate) fn strings(column: &ArrayRef) -> Result<StringArray, String> {
    match column.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => {
            let cast = cast(column, &DataType::Utf8).map_err(|error| error.to_string())?;
            Ok(cast.as_string::<i32>().clone())
        }
        other => Err(format!("a column of type {other} is no text")),
    }
}

/// The messages in row `i` of a column of lists of structs.
fn messages_of(column: &ArrayRef, i: usize) -> Result<Vec<Message>, String> {
    let list = to_json(column, i)?;
    let Value::Array(items) = list else {
        return Err("the messages are null".to_owned());
    };
    if items.is_empty() {
        return Err("there are no messages".to_owned());
    }
    let message = |(number, item)| {
        serde_json::from_value(item).map_err(|error| format!("message {} is none: {error}", number + 1))
    };
    items.into_iter().enumerate().map(message).collect()
}

/// A value as JSON; fields that are null are left out, as they were before rows with other fields came to the column.
fn to_json(column: &ArrayRef, i: usize) -> Result<Value, String> {
    if column.is_null(i) {
        return Ok(Value::Null);
    }
    let items = |list: &ArrayRef| (0..list.len()).map(|j| to_json(list, j)).collect::<Result<Vec<_>, _>>();
    Ok(match column.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            Value::String(strings(&column.slice(i, 1))?.value(0).to_owned())
        }
        DataType::Boolean => Value::Bool(column.as_boolean().value(i)),
        DataType::List(_) => Value::Array(items(&column.as_list::<i32>().value(i))?),
        DataType::LargeList(_) => Value::Array(items(&column.as_list::<i64>().value(i))?),
        DataType::Struct(fields) => {
            let mut object = Map::new();
            for (field, values) in fields.iter().zip(column.as_struct().columns()) {
                let value = to_json(values, i)?;
                if !value.is_null() {
                    object.insert(field.name().clone(), value);
                }
            }
            Value::Object(object)
        }
        other if other.is_integer() => {
            let cast = cast(&column.slice(i, 1), &DataType::Int64).map_err(|error| error.to_string())?;
            Value::from(cast.as_primitive::<Int64Type>().value(0))
        }
        other if other.is_floating() => {
            let cast = cast(&column.slice(i, 1), &DataType::Float64).map_err(|error| error.to_string())?;
            Value::from(cast.as_primitive::<Float64Type>().value(0))
        }
        other => return Err(format!("messages cannot hold values of type {other}")),
    })
}

fn piece_fields() -> Fields {
    Fields::from(vec![
        Field::new("text", DataType::Utf8, false),
        Field::new("parse_specials", DataType::Boolean, false),
        Field::new("is_answer", DataType::Boolean, false),
        Field::new("unit", DataType::Int32, false),
    ])
}

fn list_type() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Struct(piece_fields()), false)))
}

/// Conversations as a column.
fn to_array(conversations: &[Conversation]) -> ArrayRef {
    let units = conversations.iter().flat_map(|conversation| (0..).zip(&conversation.units));
    let pieces: Vec<(i32, &Piece)> =
        units.flat_map(|(unit, pieces)| pieces.iter().map(move |piece| (unit, piece))).collect();
    let flags = |flag: fn(&Piece) -> bool| -> ArrayRef {
        Arc::new(pieces.iter().map(|(_, piece)| Some(flag(piece))).collect::<BooleanArray>())
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(pieces.iter().map(|(_, piece)| piece.text.as_str()))),
        flags(|piece| piece.specials == Specials::Parse),
        flags(|piece| piece.is_answer),
        Arc::new(Int32Array::from_iter_values(pieces.iter().map(|(unit, _)| *unit))),
    ];
    let lengths = conversations.iter().map(|conversation| conversation.units.iter().map(Vec::len).sum());
    let item = Arc::new(Field::new("item", DataType::Struct(piece_fields()), false));
    let pieces = StructArray::new(piece_fields(), columns, None);
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths), Arc::new(pieces), None))
}

/// The conversation in row `i` of a column made by the chat step.
pub(crate) fn from_array(column: &ArrayRef, i: usize) -> Conversation {
    let pieces = column.as_list::<i32>().value(i);
    let fields = pieces.as_struct().columns();
    let (text, parse) = (fields[0].as_string::<i32>(), fields[1].as_boolean());
    let (is_answer, unit) = (fields[2].as_boolean(), fields[3].as_primitive::<Int32Type>());
    let mut conversation = Conversation::default();
    for piece in 0..pieces.len() {
        let number = usize::try_from(unit.value(piece)).expect("units are counted from 0");
        conversation.units.resize_with(conversation.units.len().max(number + 1), Vec::new);
        conversation.units[number].push(Piece {
            text: text.value(piece).to_owned(),
            specials: if parse.value(piece) { Specials::Parse } else { Specials::AsText },
            is_answer: is_answer.value(piece),
        });
    }
    conversation
}
