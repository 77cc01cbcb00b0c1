//! The chat step in a plan: rows in, rows with a conversation out.

use crate::{
    account::Account,
    answer::{EndLabel, TurnEnd},
    chat::{ChatFormat, Conversation, Piece},
    plan::ROW,
    row::row,
    scan::RowMap,
    stage::BatchStage,
};
use datafusion::arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Int8Array, Int32Array, ListArray, RecordBatch, StringArray, StructArray,
    },
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, Fields, Int8Type, Int32Type, Int64Type, Schema, SchemaRef},
};
use dlm_tokenizer::Specials;
use std::{collections::BTreeMap, sync::Arc};

/// The column that the chat step makes.
pub(crate) const CHAT: &str = "chat";
/// The column with the number of the format that made it.
pub(crate) const CHAT_FORMAT: &str = "__chat_format";

/// The chat step in a plan: adds the column `chat` with the pieces of the conversation.
#[derive(Debug)]
pub(crate) struct ChatStage {
    pub(crate) formats: Vec<ChatFormat>,
    /// The number of the format for rows of each source.
    pub(crate) of_source: Vec<usize>,
    /// What the formats are, for people.
    pub(crate) options: String,
    pub(crate) input: SchemaRef,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) account: Arc<Account>,
    pub(crate) threads: usize,
}

impl BatchStage for ChatStage {
    fn name(&self) -> &'static str {
        "Chat"
    }

    fn options(&self) -> String {
        self.options.clone()
    }

    fn schema(&self) -> SchemaRef {
        let others = self.input.fields().iter().filter(|field| ![CHAT, CHAT_FORMAT].contains(&field.name().as_str()));
        let format = Arc::new(Field::new(CHAT_FORMAT, DataType::Int32, false));
        let chat = Arc::new(Field::new(CHAT, chat_type(), false));
        Arc::new(Schema::new(others.cloned().chain([format, chat]).collect::<Fields>()))
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn map(&self, batch: &RecordBatch) -> crate::Result<RecordBatch> {
        let rows = batch[ROW].as_primitive::<Int64Type>();
        let formats = match self.formats.as_slice() {
            [_] => vec![0; batch.num_rows()],
            _ => self.rows.sources_of(rows.values()).into_iter().map(|source| self.of_source[source]).collect(),
        };
        let columns: Vec<Vec<&str>> = self.formats.iter().map(ChatFormat::columns).collect();
        let (mut conversations, mut left_out) = (Vec::with_capacity(batch.num_rows()), Vec::new());
        let (mut ignored, mut seen) = (Vec::new(), BTreeMap::new());
        for (i, format) in formats.iter().enumerate() {
            let made = row(batch, i, &columns[*format]).and_then(|row| self.formats[*format].remarked(&row));
            match made {
                Ok((conversation, remarks)) => {
                    conversations.push(conversation);
                    ignored.extend(remarks.ignored.into_iter().map(|(field, messages)| (i, field, messages)));
                    seen.extend(remarks.seen.into_iter().map(|what| (what, i)));
                }
                Err(message) => left_out.push((i, self.rows.leave_out(rows.value(i), message)?)),
            }
        }
        self.account.ignored(batch, ignored);
        self.account.seen(batch, seen.into_iter().map(|(what, i)| (i, what)));
        let (batch, kept) = self.account.without(batch, left_out)?;
        let schema = self.schema();
        let column = |field: &Arc<Field>| match field.name().as_str() {
            CHAT => to_array(&conversations),
            CHAT_FORMAT => {
                let formats = kept.iter().map(|i| i32::try_from(formats[*i]).ok());
                Arc::new(formats.collect::<Int32Array>())
            }
            name => Arc::clone(&batch[name]),
        };
        let columns = schema.fields().iter().map(column).collect();
        Ok(RecordBatch::try_new(Arc::clone(&schema), columns).expect("the columns are those of the schema"))
    }
}

fn piece_fields() -> Fields {
    Fields::from(vec![
        Field::new("text", DataType::Utf8, false),
        Field::new("parse_specials", DataType::Boolean, false),
        Field::new("is_answer", DataType::Boolean, false),
        Field::new("unit", DataType::Int32, false),
        Field::new("eot", DataType::Int8, false),
        Field::new("eos", DataType::Int8, false),
    ])
}

fn pieces_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(piece_fields()), false))
}

fn chat_fields() -> Fields {
    Fields::from(vec![
        Field::new("begins", DataType::Boolean, false),
        Field::new("ends", DataType::Boolean, false),
        Field::new("pieces", DataType::List(pieces_item()), false),
    ])
}

fn chat_type() -> DataType {
    DataType::Struct(chat_fields())
}

/// Conversations as a column.
fn to_array(conversations: &[Conversation]) -> ArrayRef {
    let units = conversations.iter().flat_map(|conversation| (0..).zip(&conversation.units));
    let pieces: Vec<(i32, &Piece)> =
        units.flat_map(|(unit, pieces)| pieces.iter().map(move |piece| (unit, piece))).collect();
    let flags = |flag: fn(&Piece) -> bool| -> ArrayRef {
        Arc::new(pieces.iter().map(|(_, piece)| Some(flag(piece))).collect::<BooleanArray>())
    };
    let ends = |end: fn(TurnEnd) -> EndLabel| -> ArrayRef {
        let labels = pieces.iter().map(|(_, piece)| end(piece.turn_end) as i8);
        Arc::new(Int8Array::from_iter_values(labels))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(pieces.iter().map(|(_, piece)| piece.text.as_str()))),
        flags(|piece| piece.specials == Specials::Parse),
        flags(|piece| piece.is_answer),
        Arc::new(Int32Array::from_iter_values(pieces.iter().map(|(unit, _)| *unit))),
        ends(|end| end.eot),
        ends(|end| end.eos),
    ];
    let lengths = conversations.iter().map(|conversation| conversation.units.iter().map(Vec::len).sum());
    let pieces = StructArray::new(piece_fields(), columns, None);
    let pieces = ListArray::new(pieces_item(), OffsetBuffer::from_lengths(lengths), Arc::new(pieces), None);
    let whole = |flag: fn(&Conversation) -> bool| -> ArrayRef {
        Arc::new(conversations.iter().map(|conversation| Some(flag(conversation))).collect::<BooleanArray>())
    };
    let columns = vec![whole(|chat| chat.begins), whole(|chat| chat.ends), Arc::new(pieces) as ArrayRef];
    Arc::new(StructArray::new(chat_fields(), columns, None))
}

/// The conversation in row `i` of a column made by the chat step.
pub(crate) fn from_array(column: &ArrayRef, i: usize) -> Conversation {
    let whole = column.as_struct().columns();
    let pieces = whole[2].as_list::<i32>().value(i);
    let fields = pieces.as_struct().columns();
    let (text, parse) = (fields[0].as_string::<i32>(), fields[1].as_boolean());
    let (is_answer, unit) = (fields[2].as_boolean(), fields[3].as_primitive::<Int32Type>());
    let end = |field: usize, piece: usize| match fields[field].as_primitive::<Int8Type>().value(piece) {
        0 => EndLabel::No,
        1 => EndLabel::Yes,
        _ => EndLabel::IfLast,
    };
    let (begins, ends) = (whole[0].as_boolean().value(i), whole[1].as_boolean().value(i));
    let mut conversation = Conversation { units: Vec::new(), begins, ends };
    for piece in 0..pieces.len() {
        let number = usize::try_from(unit.value(piece)).expect("units are counted from 0");
        conversation.units.resize_with(conversation.units.len().max(number + 1), Vec::new);
        conversation.units[number].push(Piece {
            text: text.value(piece).to_owned(),
            specials: if parse.value(piece) { Specials::Parse } else { Specials::AsText },
            is_answer: is_answer.value(piece),
            turn_end: TurnEnd { eot: end(4, piece), eos: end(5, piece) },
        });
    }
    conversation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_the_same_after_it_was_a_column() {
        let piece = |text: &str, turn_end| Piece { turn_end, ..Piece::new(text, Specials::AsText) };
        let end = |eot, eos| TurnEnd { eot, eos };
        let conversation = Conversation {
            units: vec![
                vec![piece("a", end(EndLabel::IfLast, EndLabel::Yes)), piece("", TurnEnd::default())],
                vec![Piece { is_answer: true, specials: Specials::Parse, ..piece("b", TurnEnd::default()) }],
            ],
            begins: true,
            ends: false,
        };
        let other = Conversation { ends: true, ..Conversation::default() };
        let column = to_array(&[conversation.clone(), other.clone()]);
        assert_eq!(from_array(&column, 0), conversation);
        assert_eq!(from_array(&column, 1), other);
    }
}
