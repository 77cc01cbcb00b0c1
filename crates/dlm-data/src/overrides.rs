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

/// The pipeline with one value replaced.
pub(crate) fn apply(pipeline: &Pipeline, key: &str, value: &str) -> Result<Pipeline> {
    let mut tree = Value::try_from(pipeline).map_err(|error| DataError::pipeline(error.to_string()))?;
    for name in OPTIONAL {
        // A pipeline without output gets one by being told its path.
        tree.as_table_mut().expect("a table").entry(name).or_insert_with(|| Value::Table(toml::Table::new()));
    }
    let wanted: Vec<&str> = key.split('.').collect();
    let (leaf, container) = wanted.split_last().expect("splitting gives one word at least");

    let addresses = containers(&tree);
    let mut found: Vec<Address> = Vec::new();
    for address in &addresses {
        if matches(&addresses, address, container) {
            found.push([address.as_slice(), &[(*leaf).to_owned()]].concat());
        }
        // `filter` and `select` hold their value themselves.
        if matches(&addresses, address, &wanted) && at(&mut tree, address).is_some_and(|value| !value.is_table()) {
            found.push(address.clone());
        }
    }
    found.retain(|address| {
        let container = &address[..address.len() - 1];
        addresses.iter().any(|known| known == address) || at(&mut tree, container).is_some_and(|value| value.is_table())
    });
    if key == "on_error" {
        found = vec![vec![key.to_owned()]]; // the only value that stands by itself
    }
    let address = match found.as_slice() {
        [] => {
            return Err(DataError::UnknownOverride { key: key.to_owned(), candidates: leaves(&tree) });
        }
        [address] => address,
        _ => {
            let candidates = found.iter().map(|address| address.join(".")).collect();
            return Err(DataError::AmbiguousOverride { key: key.to_owned(), candidates });
        }
    };

    let (leaf, container) = address.split_last().expect("an address has words");
    set(at(&mut tree, container).expect("the address was found"), leaf, parse(value));
    for name in OPTIONAL {
        if tree[name].as_table().is_some_and(toml::Table::is_empty) {
            tree.as_table_mut().expect("a table").remove(name);
        }
    }
    let changed: Pipeline = spelling::from_value(tree).map_err(|error| match error {
        DataError::Pipeline { path, line, message, nearest } => {
            DataError::Pipeline { path, line, message: format!("the override `{key}={value}`: {message}"), nearest }
        }
        other => other,
    })?;
    Ok(Pipeline { base: pipeline.base.clone(), remote: pipeline.remote.clone(), ..changed })
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
        words => address.len() >= words.len() && words.iter().eq(&address[address.len() - words.len()..]),
    }
}

fn at<'a>(tree: &'a mut Value, address: &[String]) -> Option<&'a mut Value> {
    address.iter().try_fold(tree, |value, word| match value {
        Value::Array(items) => items.get_mut(word.parse::<usize>().ok()?),
        Value::Table(table) => table.get_mut(word),
        _ => None,
    })
}

fn set(container: &mut Value, leaf: &str, value: Value) {
    if let Value::Table(table) = container {
        table.insert(leaf.to_owned(), value);
    }
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
