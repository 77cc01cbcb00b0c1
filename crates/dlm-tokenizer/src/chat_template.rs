//! Chat templates: a conversation as the text that a model was taught to read.
//!
//! Jinja as transformers runs it: Python's methods on texts and lists, `tojson`, `raise_exception`, `strftime_now`, loop
//! controls, blocks that take their line with them, and `{% generation %}` around what the assistant says.

use crate::{
    encode::{Marked, Part, Specials, Spellings, free_mark},
    error::{Result, TokenizerError},
    generation::{self, GENERATION_FILTER},
    message::Message,
    python_json::tojson,
};
use chrono::{DateTime, Local, TimeZone, Utc, format::StrftimeItems};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, syntax::SyntaxConfig};
use serde_json::{Map, Value as Json};
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// A chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    name: String,
    source: String,
    compiled: Arc<OnceLock<std::result::Result<Environment<'static>, Error>>>,
}

/// What a template is told beside the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// Ends with the words that begin an answer: for generation.
    pub add_generation_prompt: bool,
    /// Variables of the template: `bos_token` and its like (see [`Tokenizer::render_options`](crate::Tokenizer::render_options)),
    /// `tools`, `documents`, a model's own such as `enable_thinking`.
    pub variables: Map<String, Json>,
    /// What messages, `tools` and `documents` may spell without meaning it: the tokenizer's special tokens.
    pub specials: Spellings,
    /// What `strftime_now` takes for now, in seconds since 1970 (UTC); the clock and its time zone where unset. Set it where the
    /// same conversation must always give the same text.
    pub now: Option<i64>,
}

/// A rendered conversation, with what is known of its parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Ranges of bytes where a message spells a special token: text, which must not be read as the token.
    pub said: Vec<Range<usize>>,
    /// Ranges of bytes that the template marks as the assistant's (`{% generation %}`); none if it marks nothing.
    pub generation: Vec<Range<usize>>,
}

impl Rendered {
    /// The text in pieces that each know how special tokens in them are read; put together they are the text.
    ///
    /// Only what spells a special token in a message is a piece of its own.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut start = 0;
        let mut push = |range: Range<usize>, specials| {
            if !range.is_empty() {
                parts.push(Part { text: self.text[range].to_owned(), specials });
            }
        };
        for said in &self.said {
            push(start..said.start, Specials::Parse);
            push(said.start.max(start)..said.end, Specials::AsText);
            start = said.end.max(start);
        }
        push(start..self.text.len(), Specials::Parse);
        parts
    }
}

impl ChatTemplate {
    /// Compiles a template; `name` is how errors call it.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] with the line of what is no Jinja.
    pub fn from_source(name: impl Into<String>, source: impl Into<String>) -> Result<Self> {
        let template = Self::deferred(name, source);
        template.environment()?;
        Ok(template)
    }

    /// A template that is compiled when first rendered: a folder with a bad one is still good for training on plain text.
    pub(crate) fn deferred(name: impl Into<String>, source: impl Into<String>) -> Self {
        Self { name: name.into(), source: source.into(), compiled: Arc::default() }
    }

    /// Its Jinja source.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation to text.
    ///
    /// To encode it take [`render_parts`](Self::render_parts), which knows what in it people said.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] when the template refuses the conversation or cannot be compiled, with its line.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        Ok(self.render_parts(messages, options)?.text)
    }

    /// Renders a conversation, keeping track of special tokens spelled in messages and of what the assistant says.
    ///
    /// A mark inside each such spelling goes through the template with it, so it is found again wherever the template puts it,
    /// trimmed, split or joined. A template that looks for such a spelling in a message does not find it, and one that counts
    /// characters counts the mark.
    ///
    /// # Errors
    /// As [`render`](Self::render); and as [`Tokenizer::encode`](crate::Tokenizer::encode) where a special token cannot be marked.
    pub fn render_parts(&self, messages: &[Message], options: &RenderOptions) -> Result<Rendered> {
        let mut messages: Vec<Json> = messages.iter().map(to_json).collect();
        let mut variables = options.variables.clone();
        let mut texts = vec![self.source.as_str()];
        messages.iter().chain(variables.values()).for_each(|json| collect_texts(json, &mut texts));
        let [mut mark, mut start, mut end] = ['\0'; 3];
        let mut taken = Vec::new();
        for place in [&mut mark, &mut start, &mut end] {
            *place = free_mark(&texts, &taken)?;
            taken.push(*place);
        }
        let said = variables.iter_mut().filter(|(name, _)| ["tools", "documents"].contains(&name.as_str()));
        let mut said = messages.iter_mut().chain(said.map(|(_, value)| value));
        said.try_for_each(|json| mark_specials(json, &options.specials, mark))?;

        let mut context: Vec<(String, Value)> = vec![
            ("tools".to_owned(), Value::from(())),
            ("documents".to_owned(), Value::from(())),
            (generation::START.to_owned(), Value::from(start.to_string())),
            (generation::END.to_owned(), Value::from(end.to_string())),
            (NOW.to_owned(), Value::from(options.now)),
        ];
        context.extend(variables.iter().map(|(name, value)| (name.clone(), to_value(value))));
        context.push(("add_generation_prompt".to_owned(), options.add_generation_prompt.into()));
        context.push(("messages".to_owned(), messages.iter().map(to_value).collect()));
        let environment = self.environment()?;
        let template = environment.get_template(TEMPLATE).map_err(|error| self.failed(&error))?;
        let context = Value::from_pairs(context);
        let marked = template.render(context).map_err(|error| self.failed(&error))?;
        Ok(unmarked(&marked, options.specials.texts(), [mark, start, end]))
    }

    fn environment(&self) -> Result<&Environment<'static>> {
        self.compiled.get_or_init(|| compile(&self.source)).as_ref().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: &Error) -> TokenizerError {
        let message = match (error.kind(), error.detail()) {
            (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
            (kind, Some(detail)) => format!("{kind}: {detail}"),
            (kind, None) => kind.to_string(),
        };
        TokenizerError::Template { template: self.name.clone(), line: error.line(), message }
    }
}

const TEMPLATE: &str = "chat";
const NOW: &str = "__now";

fn compile(source: &str) -> std::result::Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_filter(GENERATION_FILTER, generation::enclose);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_template_owned(TEMPLATE, generation::as_filters(source))?;
    Ok(environment)
}

fn strftime_now(state: &State, format: &str) -> std::result::Result<String, Error> {
    let bad = || Error::new(ErrorKind::InvalidOperation, format!("`{format}` is no format of a date"));
    let items = StrftimeItems::new(format).parse().map_err(|_| bad())?;
    let now = state.lookup(NOW).and_then(|now| now.as_i64());
    Ok(match now {
        Some(seconds) => {
            let moment: DateTime<Utc> = Utc.timestamp_opt(seconds, 0).single().ok_or_else(bad)?;
            moment.format_with_items(items.iter()).to_string()
        }
        None => Local::now().format_with_items(items.iter()).to_string(),
    })
}

fn to_json(message: &Message) -> Json {
    let mut object = Map::new();
    object.insert("role".to_owned(), message.role.clone().into());
    object.insert("content".to_owned(), message.content.clone());
    object.extend(message.other.clone());
    Json::Object(object)
}

fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => list.iter().map(to_value).collect(),
        Json::Object(object) => Value::from_pairs(object.iter().map(|(key, value)| (key.as_str(), to_value(value)))),
    }
}

/// The texts in a value, the names of keys left out.
fn collect_texts<'a>(json: &'a Json, texts: &mut Vec<&'a str>) {
    match json {
        Json::String(text) => texts.push(text),
        Json::Array(list) => list.iter().for_each(|item| collect_texts(item, texts)),
        Json::Object(object) => object.values().for_each(|item| collect_texts(item, texts)),
        _ => {}
    }
}

/// Puts a mark inside every special token that a value spells.
fn mark_specials(json: &mut Json, specials: &Spellings, mark: char) -> Result<()> {
    match json {
        Json::String(text) => {
            let mut places = specials.find(text).peekable();
            if places.peek().is_some() {
                let marked = Marked::new(text, places, mark)?.text;
                *text = marked;
            }
            Ok(())
        }
        Json::Array(list) => list.iter_mut().try_for_each(|item| mark_specials(item, specials, mark)),
        Json::Object(object) => object.values_mut().try_for_each(|item| mark_specials(item, specials, mark)),
        _ => Ok(()),
    }
}

/// Takes the marks out again and remembers what they told.
fn unmarked(marked: &str, specials: &[String], [mark, start, end]: [char; 3]) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let (mut marks, mut open, mut generation) = (Vec::new(), None, Vec::new());
    for character in marked.chars() {
        match character {
            _ if character == mark => marks.push(text.len()),
            _ if character == start => open = open.or(Some(text.len())),
            _ if character == end => generation.extend(open.take().map(|from| from..text.len())),
            _ => text.push(character),
        }
    }
    let mut said: Vec<Range<usize>> = Vec::new();
    for position in marks {
        let Some((first, _)) = text[..position].char_indices().next_back() else { continue };
        // A template may have cut the spelling off: then it spells nothing any more.
        let spelled = specials.iter().filter(|special| text[first..].starts_with(special.as_str()));
        if let Some(len) = spelled.map(String::len).max() {
            said.push(first..first + len);
        }
    }
    Rendered { text, said, generation }
}
