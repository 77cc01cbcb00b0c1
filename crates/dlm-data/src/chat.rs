//! Rows to conversations: what is prompt and what is answer, and whose words may hold special tokens.

use crate::{
    answer::{TurnEnd, mark_answers},
    chat_options::{Chat, Completion, InputOutput, Messages, PromptCompletion},
    error::{DataError, Result},
    messages::{MessageReader, Turn},
    remarks::{Remarks, Watch},
    row::{kind, text},
    suggest::nearest,
    wording::Wording,
};
use dlm_tokenizer::{ChatTemplate, RenderOptions, Specials, Tokenizer};
use serde_json::{Map, Value};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A conversation in pieces, before it is tokenized.
///
/// Each unit is encoded by itself (Alpaca's prompt and answer are two, as in Axolotl); the pieces of a unit are encoded together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The units in order.
    pub units: Vec<Vec<Piece>>,
    /// Whether the tokenizer's beginning belongs before it; a chat template writes its own.
    pub begins: bool,
    /// Whether the tokenizer's end token belongs behind it, unless the tokenize step says otherwise.
    pub ends: bool,
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
    /// Which tokens behind it, where a turn ends with it, the model must produce as well.
    pub turn_end: TurnEnd,
}

impl Piece {
    /// A piece of a prompt, in the middle of a turn.
    #[must_use]
    pub fn new(text: impl Into<String>, specials: Specials) -> Self {
        Self { text: text.into(), specials, is_answer: false, turn_end: TurnEnd::default() }
    }
}

impl Conversation {
    /// Everything that is said, special tokens spelled out.
    #[must_use]
    pub fn text(&self) -> String {
        self.units.iter().flatten().map(|piece| piece.text.as_str()).collect()
    }
}

/// What templates that ask for today's date are told, 26 July 2024, so that the same rows always give the same bytes.
const NOW: i64 = 1_721_952_000;

/// The chat step for rows of one kind, ready to work.
///
/// ```
/// use dlm_data::{Alpaca, Chat, ChatFormat};
/// use dlm_tokenizer::{Tokenizer, TrainOptions};
/// # use std::{path::Path, sync::Arc};
///
/// let tokenizer = Tokenizer::train_bpe(["any text".to_owned()].into_iter(), &TrainOptions::new(300))?;
/// let format = ChatFormat::new(&Chat::Alpaca(Alpaca::default()), Arc::new(tokenizer), Path::new(""))?;
/// let row = serde_json::json!({ "instruction": "Name a colour.", "output": "Blue." });
/// let conversation = format.conversation(row.as_object().expect("it is an object"))?;
/// assert!(conversation.text().ends_with("### Instruction:\nName a colour.\n\n### Response:\nBlue."));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChatFormat {
    columns: Vec<String>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Wording(Box<Wording>),
    Messages(Box<Templated>),
    PromptCompletion(PromptCompletion, Box<Templated>),
    InputOutput(InputOutput),
    Completion(Completion),
}

/// Messages and what renders them.
#[derive(Debug, Clone)]
struct Templated {
    reader: MessageReader,
    watch: Watch,
    options: Messages,
    /// The error for a template that is missing is the first row's: a prompt and its completion may need none.
    template: Option<ChatTemplate>,
    render: RenderOptions,
}

impl ChatFormat {
    /// Makes the chat step ready. Paths of templates are relative to `base`.
    ///
    /// # Errors
    /// [`DataError::Pipeline`] for a wording with unknown fields or a template that is neither known nor a file,
    /// [`DataError::Read`] for one that cannot be read, [`DataError::Tokenizer`] for one that is no Jinja.
    #[expect(clippy::needless_pass_by_value, reason = "formats that keep the tokenizer share it")]
    pub fn new(chat: &Chat, tokenizer: Arc<Tokenizer>, base: &Path) -> Result<Self> {
        let wrong = |message: String| DataError::pipeline(format!("chat: {message}"));
        let kind = match chat {
            Chat::Alpaca(options) => Kind::Wording(Box::new(Wording::alpaca(options).map_err(wrong)?)),
            Chat::UserDefined(options) => Kind::Wording(Box::new(Wording::user_defined(options).map_err(wrong)?)),
            Chat::Messages(options) | Chat::Sharegpt(options) => {
                Kind::Messages(Box::new(Templated::new(options.clone(), &tokenizer, base)?))
            }
            Chat::PromptCompletion(options) => {
                let messages = Messages {
                    template: options.template.clone(),
                    eot_tokens: options.eot_tokens.clone(),
                    train_on_inputs: options.train_on_inputs,
                    ..Messages::default()
                };
                Kind::PromptCompletion(options.clone(), Box::new(Templated::new(messages, &tokenizer, base)?))
            }
            Chat::InputOutput(options) => Kind::InputOutput(options.clone()),
            Chat::Completion(options) => Kind::Completion(options.clone()),
        };
        let columns = chat.columns().into_iter().map(str::to_owned).collect();
        Ok(Self { columns, kind })
    }

    /// The source of its chat template, wherever that came from: it decides about the rows as the options do.
    pub(crate) fn template(&self) -> Option<&str> {
        match &self.kind {
            Kind::Messages(templated) | Kind::PromptCompletion(_, templated) => {
                templated.template.as_ref().map(ChatTemplate::source)
            }
            Kind::Wording(_) | Kind::InputOutput(_) | Kind::Completion(_) => None,
        }
    }

    /// The columns it looks at, those that exist.
    pub(crate) fn columns(&self) -> Vec<&str> {
        self.columns.iter().map(String::as_str).collect()
    }

    /// What its options ask for that messages may have or not, in words.
    pub(crate) fn expected(&self) -> impl Iterator<Item = &String> {
        let templated = match &self.kind {
            Kind::Messages(templated) => Some(templated),
            _ => None,
        };
        templated.into_iter().flat_map(|templated| templated.watch.expected())
    }

    /// A row as a conversation.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the row.
    pub fn conversation(&self, row: &Map<String, Value>) -> Result<Conversation, String> {
        Ok(self.remarked(row)?.0)
    }

    /// A row as a conversation, and what there is to say of it.
    pub(crate) fn remarked(&self, row: &Map<String, Value>) -> Result<(Conversation, Remarks), String> {
        let conversation = match &self.kind {
            Kind::Messages(templated) => return templated.conversation(&templated.reader.turns(row)?),
            Kind::PromptCompletion(options, templated) => return prompt_completion(row, options, templated),
            Kind::Wording(wording) => wording.conversation(row)?,
            Kind::InputOutput(options) => input_output(row, options)?,
            Kind::Completion(options) => {
                let text = text(row, &options.field)?;
                let text = text.ok_or_else(|| format!("`{}` is missing or null", options.field))?;
                let piece = Piece { is_answer: true, ..Piece::new(text, Specials::AsText) };
                let units = if text.is_empty() { Vec::new() } else { vec![vec![piece]] };
                Conversation { begins: !units.is_empty(), ends: !units.is_empty(), units }
            }
        };
        Ok((conversation, Remarks::default()))
    }
}

impl Templated {
    fn new(options: Messages, tokenizer: &Tokenizer, base: &Path) -> Result<Self> {
        let template = find_template(&options.template, tokenizer, base)?;
        let mut render = RenderOptions { now: Some(NOW), ..tokenizer.render_options() };
        render.variables.extend(options.chat_template_kwargs.clone());
        let (reader, watch) = (MessageReader::new(&options), Watch::new(&options));
        Ok(Self { reader, watch, options, template, render })
    }

    fn conversation(&self, (turns, tools): &(Vec<Turn>, Option<Value>)) -> Result<(Conversation, Remarks), String> {
        let template = self.template.as_ref().ok_or("messages need a chat template, and the tokenizer has none")?;
        let with_tools;
        let render = match tools {
            None => &self.render,
            Some(tools) => {
                let mut render = self.render.clone();
                render.variables.insert("tools".to_owned(), tools.clone());
                with_tools = render;
                &with_tools
            }
        };
        let pieces = mark_answers(template, render, turns, &self.options)?;
        let tools = tools.as_ref().map(|tools| (self.options.field_tools.as_str(), tools));
        let remarks = self.watch.look(turns, tools, template, render);
        Ok((Conversation { units: vec![pieces], begins: false, ends: false }, remarks))
    }
}

/// The template that `name` means.
fn find_template(name: &str, tokenizer: &Tokenizer, base: &Path) -> Result<Option<ChatTemplate>> {
    if name == "tokenizer" {
        return Ok(tokenizer.chat_template().cloned());
    }
    if let Some(otherwise) = name.strip_prefix("tokenizer|") {
        let own = tokenizer.chat_template().cloned();
        return if own.is_some() { Ok(own) } else { find_template(otherwise, tokenizer, base) };
    }
    if name.contains("{{") || name.contains("{%") {
        return Ok(Some(ChatTemplate::from_source("inline", name)?));
    }
    if let Some(template) = ChatTemplate::built_in(name) {
        return Ok(Some(template));
    }
    let path = base.join(name);
    match fs::read_to_string(&path) {
        Ok(source) => Ok(Some(ChatTemplate::from_source(path.display().to_string(), source)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let known = || ["tokenizer"].into_iter().chain(ChatTemplate::built_in_names());
            Err(DataError::Pipeline {
                path: None,
                line: None,
                message: format!(
                    "chat: `template = \"{name}\"` is no file and none of the templates by name: {}",
                    known().collect::<Vec<_>>().join(", ")
                ),
                nearest: nearest(name, known()).map(str::to_owned),
            })
        }
        Err(source) => Err(DataError::Read { path, source }),
    }
}

/// Whether rows of this kind cannot do without a chat template that the tokenizer lacks.
pub(crate) fn expect_template(chat: &Chat, tokenizer: &Tokenizer, path: PathBuf) -> Result<()> {
    match chat {
        Chat::Messages(messages) | Chat::Sharegpt(messages)
            if messages.template == "tokenizer" && tokenizer.chat_template().is_none() =>
        {
            Err(DataError::NoTemplate { path })
        }
        _ => Ok(()),
    }
}

/// Two texts, or two lists of messages.
fn prompt_completion(
    row: &Map<String, Value>,
    options: &PromptCompletion,
    templated: &Templated,
) -> Result<(Conversation, Remarks), String> {
    let value = |name: &str| row.get(name).filter(|value| !value.is_null());
    let missing = |name: &str| format!("`{name}` is missing or null");
    let prompt = value(&options.field_prompt).ok_or_else(|| missing(&options.field_prompt))?;
    let completion = value(&options.field_completion).ok_or_else(|| missing(&options.field_completion))?;
    match (prompt, completion) {
        (Value::String(prompt), Value::String(completion)) => {
            let piece = |text: &str, is_answer| {
                let piece = Piece { is_answer, ..Piece::new(text, Specials::AsText) };
                if text.is_empty() { Vec::new() } else { vec![piece] }
            };
            let units = vec![piece(prompt, options.train_on_inputs), piece(completion, true)];
            Ok((Conversation { begins: true, ends: !completion.is_empty(), units }, Remarks::default()))
        }
        (Value::Array(_), Value::Array(_)) => {
            let mut turns = templated.reader.turns_of(prompt, &options.field_prompt)?;
            if !options.train_on_inputs {
                turns.iter_mut().for_each(|turn| turn.training = Some(false));
            }
            turns.extend(templated.reader.turns_of(completion, &options.field_completion)?);
            templated.conversation(&(turns, None))
        }
        (prompt, completion) => Err(format!(
            "`{}` is {} and `{}` is {}: both have to be text, or both lists of messages",
            options.field_prompt,
            kind(prompt),
            options.field_completion,
            kind(completion)
        )),
    }
}

/// Segments, each a unit of its own.
fn input_output(row: &Map<String, Value>, options: &InputOutput) -> Result<Conversation, String> {
    let name = &options.column;
    let segments = match row.get(name) {
        Some(Value::Array(segments)) => segments,
        None | Some(Value::Null) => return Err(format!("`{name}` is missing or null")),
        Some(other) => return Err(format!("`{name}` is {}, and has to be a list of segments", kind(other))),
    };
    let segment = |(i, segment): (usize, &Value)| {
        let within = |message: String| format!("segment {}: {message}", i + 1);
        let Value::Object(segment) = segment else {
            return Err(within(format!("it is {}, and has to be an object", kind(segment))));
        };
        let text = text(segment, "text").map_err(within)?.ok_or_else(|| within("`text` is missing".to_owned()))?;
        let is_answer = match segment.get("label") {
            Some(Value::Bool(label)) => *label || options.train_on_inputs,
            None | Some(Value::Null) => return Err(within("`label` is missing".to_owned())),
            Some(other) => return Err(within(format!("`label` is {}, and has to be true or false", kind(other)))),
        };
        Ok(vec![Piece { is_answer, ..Piece::new(text, Specials::Parse) }])
    };
    let units = segments.iter().enumerate().map(segment).collect::<Result<Vec<_>, _>>()?;
    Ok(Conversation { units, begins: false, ends: false })
}
