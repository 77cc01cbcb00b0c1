//! Prompts made of columns: Alpaca's wordings, and words of one's own.

use crate::{
    chat::{Conversation, Piece},
    chat_options::{Alpaca, AlpacaStyle, UserDefined},
    row::text,
};
use dlm_tokenizer::Specials;
use serde_json::{Map, Value};

/// What can stand in braces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Instruction,
    Input,
    System,
    Output,
}

/// A text with fields in it, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Format(Vec<Element>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Element {
    Words(String),
    Field(Field),
}

impl Format {
    /// Reads a text in which `known` fields may stand, by Python's rules: `{name}`, and `{{` for a brace.
    fn new(key: &str, source: &str, known: &[(&str, Field)]) -> Result<Self, String> {
        let mut elements = Vec::new();
        let mut words = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            words.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                words.push_str(brace);
                rest = after;
                continue;
            }
            let end = rest.find('}').filter(|_| brace == "{");
            let names = || known.iter().map(|(name, _)| format!("`{{{name}}}`")).collect::<Vec<_>>().join(", ");
            let end = end.ok_or_else(|| {
                format!("`{key}` has a lone `{brace}`: write `{brace}{brace}` for a brace, or one of {}", names())
            })?;
            let found = known.iter().find(|(name, _)| *name == &rest[..end]);
            let (_, field) =
                found.ok_or_else(|| format!("`{key}` has `{{{}}}`; what it knows are {}", &rest[..end], names()))?;
            if !words.is_empty() {
                elements.push(Element::Words(std::mem::take(&mut words)));
            }
            elements.push(Element::Field(*field));
            rest = &rest[end + 1..];
        }
        words.push_str(rest);
        if !words.is_empty() {
            elements.push(Element::Words(words));
        }
        Ok(Self(elements))
    }

    /// The pieces of the text with these values in their places.
    fn fill(&self, values: impl Fn(Field) -> String, is_answer: bool, pieces: &mut Vec<Piece>) {
        for element in &self.0 {
            let (text, specials) = match element {
                Element::Words(words) => (words.clone(), Specials::Parse),
                Element::Field(field) => (values(*field), Specials::AsText),
            };
            if !text.is_empty() {
                pieces.push(Piece { is_answer, ..Piece::new(text, specials) });
            }
        }
    }
}

/// A prompt of columns, ready to be filled.
#[derive(Debug, Clone)]
pub(crate) struct Wording {
    system: Format,
    with_input: Format,
    without_input: Format,
    output: Format,
    system_prompt: String,
    field_system: Option<String>,
    field_instruction: String,
    field_input: String,
    field_output: String,
    train_on_inputs: bool,
}

impl Wording {
    /// The words of a user.
    pub(crate) fn user_defined(options: &UserDefined) -> Result<Self, String> {
        let asked = [("instruction", Field::Instruction), ("input", Field::Input), ("system", Field::System)];
        let no_input = options.no_input_format.as_ref().unwrap_or(&options.prompt_format);
        Ok(Self {
            system: Format::new("system_format", &options.system_format, &[("system", Field::System)])?,
            with_input: Format::new("prompt_format", &options.prompt_format, &asked)?,
            without_input: Format::new("no_input_format", no_input, &asked)?,
            output: Format::new("output_format", &options.output_format, &[("output", Field::Output)])?,
            system_prompt: options.system_prompt.clone(),
            field_system: Some(options.field_system.clone()),
            field_instruction: options.field_instruction.clone(),
            field_input: options.field_input.clone(),
            field_output: options.field_output.clone(),
            train_on_inputs: options.train_on_inputs,
        })
    }

    /// The words of Alpaca.
    pub(crate) fn alpaca(options: &Alpaca) -> Result<Self, String> {
        let (system_format, with_input, without_input) = alpaca_formats(options.style);
        let own_system = options.system_prompt.is_some() || options.field_system.is_some();
        // Alpaca's own sentence depends on whether there is an input.
        let (before_input, before_none) = if own_system { ("", "") } else { (WITH_INPUT, WITHOUT_INPUT) };
        let explained = |sentence: &str, rest: &str| {
            let sentence =
                if sentence.is_empty() { String::new() } else { system_format.replace("{system}", sentence) };
            sentence + rest
        };
        let defined = UserDefined {
            system_prompt: options.system_prompt.clone().unwrap_or_default(),
            system_format: system_format.to_owned(),
            prompt_format: explained(before_input, with_input),
            no_input_format: Some(explained(before_none, without_input)),
            field_instruction: options.field_instruction.clone(),
            field_input: options.field_input.clone(),
            field_output: options.field_output.clone(),
            train_on_inputs: options.train_on_inputs,
            ..UserDefined::default()
        };
        Ok(Self { field_system: options.field_system.clone(), ..Self::user_defined(&defined)? })
    }

    /// A row as a prompt and, unless it is empty, an answer.
    pub(crate) fn conversation(&self, row: &Map<String, Value>) -> Result<Conversation, String> {
        let required = |name: &str| text(row, name)?.ok_or_else(|| format!("`{name}` is missing or null"));
        let instruction = required(&self.field_instruction)?;
        let output = required(&self.field_output)?;
        let input = text(row, &self.field_input)?.unwrap_or_default();
        let own_system = self.field_system.as_ref().map(|name| text(row, name)).transpose()?.flatten();
        let system = own_system.unwrap_or(&self.system_prompt);
        let values = |field| match field {
            Field::Instruction => instruction.to_owned(),
            Field::Input => input.to_owned(),
            Field::System => system.to_owned(),
            Field::Output => output.to_owned(),
        };
        let mut prompt = Vec::new();
        if !system.is_empty() {
            self.system.fill(values, self.train_on_inputs, &mut prompt);
        }
        let asked = if input.is_empty() { &self.without_input } else { &self.with_input };
        asked.fill(values, self.train_on_inputs, &mut prompt);
        let mut units = vec![prompt];
        if !output.is_empty() {
            let mut answer = Vec::new();
            self.output.fill(values, true, &mut answer);
            units.push(answer);
        }
        Ok(Conversation { begins: true, ends: units.len() > 1, units })
    }
}

const WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further context. \
                          Write a response that appropriately completes the request.";
const WITHOUT_INPUT: &str =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";

/// The words around what the model is told first, around what is asked with an input, and without one.
fn alpaca_formats(style: AlpacaStyle) -> (&'static str, &'static str, &'static str) {
    match style {
        AlpacaStyle::Instruct => (
            "{system}\n\n",
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            "### Instruction:\n{instruction}\n\n### Response:\n",
        ),
        AlpacaStyle::Chat => {
            ("SYSTEM: {system}\n", "USER: {instruction}\n{input}\nASSISTANT:", "USER: {instruction}\nASSISTANT:")
        }
        AlpacaStyle::Chatml => (
            "<|im_start|>system\n{system}<|im_end|>\n",
            "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
        ),
        AlpacaStyle::Phi => (
            "<|system|>\n{system}<|end|>\n",
            "<|user|>\n{instruction}<|end|>{input}<|assistant|>",
            "<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(options: &UserDefined, row: &Value) -> Result<String, String> {
        Ok(Wording::user_defined(options)?.conversation(row.as_object().unwrap())?.text())
    }

    #[test]
    fn braces_and_fields_are_read_as_python_reads_them() {
        let options = |format: &str| UserDefined { prompt_format: format.to_owned(), ..UserDefined::default() };
        let row = json!({ "instruction": "{input}", "input": "b", "output": "c" });
        assert_eq!(texts(&options("{{{instruction}}} {input}: "), &row).unwrap(), "{{input}} b: c");
        for (wrong, message) in [("{instrution}", "`{instrution}`"), ("a } b", "lone `}`"), ("{input", "lone `{`")] {
            let error = texts(&options(wrong), &row).unwrap_err();
            assert!(error.contains(message) && error.contains("`{input}`"), "{error}");
        }
    }

    #[test]
    fn without_a_format_of_its_own_a_row_without_input_leaves_the_place_empty() {
        let options = UserDefined { prompt_format: "<{instruction}|{input}>".to_owned(), ..UserDefined::default() };
        let row = json!({ "instruction": "a", "input": null, "output": "c", "system": "s" });
        assert_eq!(texts(&options, &row).unwrap(), "s<a|>c");
        let options = UserDefined { no_input_format: Some("<{instruction}>".to_owned()), ..options };
        assert_eq!(texts(&options, &row).unwrap(), "s<a>c");
    }

    #[test]
    fn what_is_no_text_is_said() {
        for (row, message) in [
            (json!({ "output": "c" }), "`instruction` is missing or null"),
            (json!({ "instruction": "a", "output": null }), "`output` is missing or null"),
            (json!({ "instruction": "a", "output": 3 }), "`output` is a number, and has to be text"),
            (json!({ "instruction": "a", "output": "b", "input": [] }), "`input` is a list, and has to be text"),
        ] {
            assert_eq!(texts(&UserDefined::default(), &row).unwrap_err(), message);
        }
    }
}
