//! Whether the fields of messages that options name are there, where the type of the column tells.

use crate::{
    chat_options::Chat,
    error::{DataError, Result},
};
use datafusion::arrow::datatypes::{DataType, Field, Fields, Schema};

/// Refuses options that name a field which no message has.
pub(crate) fn expect_fields(chat: &Chat, schema: &Schema) -> Result<()> {
    let (Chat::Messages(options) | Chat::Sharegpt(options)) = chat else { return Ok(()) };
    // Messages that are JSON in a text are known row by row.
    let column = schema.field_with_name(&options.column).ok().map(Field::data_type);
    let Some(fields) = column.and_then(fields_of) else { return Ok(()) };
    let asked = [
        ("message_field_training", &options.message_field_training),
        ("message_field_training_detail", &options.message_field_training_detail),
    ];
    let asked = asked.into_iter().filter_map(|(option, name)| Some((option, name.as_ref()?)));
    let mapped = options.message_property_mappings.iter().filter(|(to, from)| !is_usual(to, from));
    let mapped = mapped.map(|(_, from)| ("message_property_mappings", from));
    let absent = asked.chain(mapped).find(|(_, name)| fields.find(name.as_str()).is_none());
    absent.map_or(Ok(()), |(option, name)| {
        Err(DataError::UnknownField {
            option,
            field: name.clone(),
            column: options.column.clone(),
            fields: fields.iter().map(|field| field.name().clone()).collect(),
        })
    })
}

fn fields_of(data_type: &DataType) -> Option<&Fields> {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => match item.data_type() {
            DataType::Struct(fields) => Some(fields),
            _ => None,
        },
        _ => None,
    }
}

/// What is asked for without a word about it. A message without it is an error of its row.
fn is_usual(to: &str, from: &str) -> bool {
    [("role", "role"), ("content", "content"), ("role", "from"), ("content", "value")].contains(&(to, from))
}
