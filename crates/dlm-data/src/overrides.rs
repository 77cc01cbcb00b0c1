//! `--set pack.sequence_len=1024`: one value of a pipeline changed by name.

use crate::{
    error::{DataError, Result},
    pipeline::Pipeline,
    spelling,
};
use toml::Value;

/// A value of the pipeline: the words of its full name, such as `step.3.pack.sequence_len`.
type Address = Vec<String>;

/// The tables that a pipeline may have or not.
const OPTIONAL: [&str; 3] = ["output", "resources", "mix"];
/// The tables of names that sources and steps are written without where they are empty.
const OPTIONAL_WITHIN: [(&str, &str); 3] =
    [("source", "columns"), ("tokenize", "special_tokens"), ("chat", "chat_template_kwargs")];

/// The pipeline with one value replaced.
pub(crate) fn apply(pipeline: &Pipeline, key: &str, value: &str) -> Result<Pipeline> {
    let mut tree = Value::try_from(pipeline).map_err(|error| DataError::pipeline(error.to_string()))?;
    // A pipeline without output gets one by being told its path.
    for_each_optional(&mut tree, &mut |table, name| {
        table.entry(name).or_insert_with(|| Value::Table(toml::Table::new()));
    });
    let wanted: Vec<&str> = key.split('.').collect();
    let (container, leaf) =
        key.rsplit_once('.').map_or((Vec::new(), key), |(container, leaf)| (container.split('.').collect(), leaf));

    let addresses = containers(&tree);
    let mut found: Vec<(Address, String)> = Vec::new();
    for address in &addresses {
        if matches(&addresses, address, &container) {
            found.push((address.clone(), leaf.to_owned()));
        }
        // `filter` and `select` hold their value themselves.
        if matches(&addresses, address, &wanted)
            && at(&mut tree, address).is_some_and(|value| !value.is_table())
            && let [step @ .., name] = address.as_slice()
        {
            found.push((step.to_vec(), name.clone()));
        }
    }
    found.retain(|(container, _)| at(&mut tree, container).is_some_and(|value| value.is_table()));
    if key == "on_error" {
        found = vec![(Vec::new(), key.to_owned())]; // the only value that stands by itself
    }
    let unknown = |tree| Err(DataError::UnknownOverride { key: key.to_owned(), candidates: leaves(tree) });
    let (container, leaf) = match found.as_slice() {
        [] => return unknown(&tree),
        [found] => found,
        _ => {
            let candidates =
                found.iter().map(|(container, leaf)| [container.as_slice(), std::slice::from_ref(leaf)].concat());
            let candidates = candidates.map(|address| address.join(".")).collect();
            return Err(DataError::AmbiguousOverride { key: key.to_owned(), candidates });
        }
    };
    match at(&mut tree, container) {
        Some(Value::Table(table)) => drop(table.insert(leaf.clone(), parse(value))),
        _ => return unknown(&tree),
    }
    for_each_optional(&mut tree, &mut |table, name| {
        if table.get(name).and_then(Value::as_table).is_some_and(toml::Table::is_empty) {
            table.remove(name);
        }
    });
    let changed: Pipeline = spelling::from_value(tree).map_err(|error| match error {
        DataError::Pipeline { path, line, message, nearest } => {
            DataError::Pipeline { path, line, message: format!("the override `{key}={value}`: {message}"), nearest }
        }
        other => other,
    })?;
    Ok(Pipeline { base: pipeline.base.clone(), remote: pipeline.remote.clone(), ..changed })
}

/// Goes through the tables that may be there or not: the table around each, and its name.
fn for_each_optional(tree: &mut Value, visit: &mut impl FnMut(&mut toml::Table, &'static str)) {
    let Value::Table(pipeline) = tree else { return };
    OPTIONAL.iter().for_each(|name| visit(pipeline, name));
    let mut within = |holder: &str, value: &mut Value| {
        let Value::Table(table) = value else { return };
        let names = OPTIONAL_WITHIN.iter().filter(|(known, _)| *known == holder);
        names.for_each(|(_, name)| visit(table, name));
    };
    for source in pipeline.get_mut("source").and_then(Value::as_array_mut).into_iter().flatten() {
        within("source", source);
        source.get_mut("chat").into_iter().filter(|chat| takes_kwargs(chat)).for_each(|chat| within("chat", chat));
    }
    for step in pipeline.get_mut("step").and_then(Value::as_array_mut).into_iter().flatten() {
        for (kind, options) in step.as_table_mut().into_iter().flatten() {
            if kind != "chat" || takes_kwargs(options) {
                within(kind, options);
            }
        }
    }
}

/// Whether a format of conversations has a template that takes variables.
fn takes_kwargs(chat: &Value) -> bool {
    chat.get("format").and_then(Value::as_str).is_some_and(|format| ["messages", "sharegpt"].contains(&format))
}

/// What a value given as text means: TOML where it is TOML, else the text.
fn parse(value: &str) -> Value {
    let parsed: Option<toml::Table> = toml::from_str(&format!("value = {value}")).ok();
    parsed.and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(value.to_owned()))
}

/// The addresses of everything that holds values: `output`, `source.0`, `source.0.chat`, `step.3.pack`, `step.0.filter`,
/// `step.1.dedup.near`.
fn containers(tree: &Value) -> Vec<Address> {
    let count = |name: &str| tree.get(name).and_then(Value::as_array).map_or(0, Vec::len);
    let mut addresses: Vec<Address> = OPTIONAL.iter().map(|name| vec![(*name).to_owned()]).collect();
    for i in 0..count("source") {
        let source = vec!["source".to_owned(), i.to_string()];
        tables_within(&tree["source"][i], &source, &mut addresses);
        addresses.push(source);
    }
    for i in 0..count("step") {
        for (kind, options) in tree["step"][i].as_table().into_iter().flatten() {
            let step = vec!["step".to_owned(), i.to_string(), kind.clone()];
            tables_within(options, &step, &mut addresses);
            addresses.push(step);
        }
    }
    addresses
}

/// The addresses of the tables in a table.
fn tables_within(value: &Value, address: &[String], addresses: &mut Vec<Address>) {
    for (word, inner) in value.as_table().into_iter().flatten().filter(|(_, inner)| inner.is_table()) {
        let address = [address, std::slice::from_ref(word)].concat();
        tables_within(inner, &address, addresses);
        addresses.push(address);
    }
}

/// Whether words name an address: in full, or by its last words, or by its kind and number among that kind.
fn matches(addresses: &[Address], address: &Address, words: &[&str]) -> bool {
    let kind = |address: &Address| address.iter().rfind(|word| word.parse::<usize>().is_err()).cloned();
    let number = addresses.iter().take_while(|other| *other != address).filter(|a| kind(a) == kind(address)).count();
    match words {
        [] => false,
        [name] => Some(*name) == kind(address).as_deref(),
        [name, index] if Some(*name) == kind(address).as_deref() => index.parse() == Ok(number),
        words => {
            // The numbers of sources and steps may be left out.
            let names: Vec<&String> = address.iter().filter(|word| word.parse::<usize>().is_err()).collect();
            ends_with(&address.iter().collect::<Vec<_>>(), words) || ends_with(&names, words)
        }
    }
}

fn ends_with(address: &[&String], words: &[&str]) -> bool {
    address.len() >= words.len() && words.iter().eq(&address[address.len() - words.len()..])
}

fn at<'a>(tree: &'a mut Value, address: &[String]) -> Option<&'a mut Value> {
    address.iter().try_fold(tree, |value, word| match value {
        Value::Array(items) => items.get_mut(word.parse::<usize>().ok()?),
        Value::Table(table) => table.get_mut(word),
        _ => None,
    })
}

/// The full names of all values, to choose from.
fn leaves(tree: &Value) -> Vec<String> {
    let mut names = Vec::new();
    collect(tree, "", &mut names);
    names
}

fn collect(value: &Value, name: &str, names: &mut Vec<String>) {
    let inner = |word: &str| if name.is_empty() { word.to_owned() } else { format!("{name}.{word}") };
    match value {
        Value::Table(table) => table.iter().for_each(|(word, value)| collect(value, &inner(word), names)),
        Value::Array(items) if items.iter().any(Value::is_table) => {
            items.iter().enumerate().for_each(|(i, value)| collect(value, &inner(&i.to_string()), names));
        }
        _ => names.push(name.to_owned()),
    }
}
