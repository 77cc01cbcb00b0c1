//! JSON as Python's `json.dumps` writes it, which is what chat templates get from `tojson`.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};
use std::fmt::Write;

/// How it is written: the arguments of `json.dumps` that transformers lets templates choose.
struct Style {
    ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sorted: bool,
}

/// The filter `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`; nothing is escaped for HTML.
#[allow(clippy::needless_pass_by_value)] // the template engine calls it so
pub(crate) fn tojson(value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let flag = |name: &str| Ok::<_, Error>(arguments.get::<Option<Value>>(name)?.is_some_and(|value| value.is_true()));
    let (ascii, sorted) = (flag("ensure_ascii")?, flag("sort_keys")?);
    let indent = arguments.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none());
    let indent = indent.map(|indent| match indent.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(indent.as_usize().unwrap_or(0)),
    });
    let separators = match arguments.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => None,
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "`separators` are two texts")),
    };
    arguments.assert_all_used()?;
    let default_item = if indent.is_some() { "," } else { ", " };
    let (item_separator, key_separator) = separators.unwrap_or_else(|| (default_item.to_owned(), ": ".to_owned()));
    let style = Style { ascii, indent, item_separator, key_separator, sorted };
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(out)
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_text(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    entries.push((key_text(&key)?, value.get_item(&key)?));
                }
                if self.sorted {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.write_items(out, ['{', '}'], depth, entries.len(), |out, item| {
                    let (key, value) = &entries[item];
                    self.write_text(out, key);
                    out.push_str(&self.key_separator);
                    self.write(out, value, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(out, ['[', ']'], depth, items.len(), |out, item| {
                    self.write(out, &items[item], depth + 1)
                })?;
            }
            other => return Err(Error::new(ErrorKind::BadSerialization, format!("{other} is not JSON serializable"))),
        }
        Ok(())
    }

    fn write_items(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        depth: usize,
        len: usize,
        write: impl Fn(&mut String, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for item in 0..len {
            if item > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(out, depth + 1);
            write(out, item)?;
        }
        if len > 0 {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn write_text(&self, out: &mut String, text: &str) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                // The marks that this crate puts into texts stand in this range, and must get through as they are.
                '\u{FDD0}'..='\u{FDEF}' => out.push(character),
                _ if character < ' '
                    || (self.ascii && !character.is_ascii())
                    || (self.ascii && character == '\u{7f}') =>
                {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}"); // writing to a String cannot fail
                    }
                }
                _ => out.push(character),
            }
        }
        out.push('"');
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        other => Err(Error::new(ErrorKind::BadSerialization, format!("keys must be text or numbers, not {other}"))),
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => python_float(number),
        _ => value.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits that read back the same, in plain notation from 1e-4 to below 1e16.
fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{number:?}") // always with a point
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::Environment;

    fn dumped(expression: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        environment.render_str(&format!("{{{{ {expression} }}}}"), ()).unwrap()
    }

    #[test] // expected: Python 3.11, json.dumps(value, ensure_ascii=False, ...)
    fn values_are_written_as_python_writes_them() {
        let value = r#"{"b": [1, 2.0, 1e-05, true, none], "a": "<é'\n\"/", "c": {}, "d": []}"#;
        assert_eq!(
            dumped(&format!("{value} | tojson")),
            r#"{"b": [1, 2.0, 1e-05, true, null], "a": "<é'\n\"/", "c": {}, "d": []}"#
        );
        assert_eq!(
            dumped(r#"{"b": [1], "a": {}} | tojson(indent=2, sort_keys=true)"#),
            "{\n  \"a\": {},\n  \"b\": [\n    1\n  ]\n}"
        );
        assert_eq!(dumped(r#"{"b": [1, 2]} | tojson(separators=(",", ":"))"#), r#"{"b":[1,2]}"#);
        assert_eq!(dumped(r#""é😀" | tojson(ensure_ascii=true)"#), r#""\u00e9\ud83d\ude00""#);
    }

    #[test]
    fn floats_change_notation_where_python_does() {
        let cases = [
            (1e16, "1e+16"),
            (123_456.0, "123456.0"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (0.000_012_5, "1.25e-05"),
            (-0.0, "-0.0"),
        ];
        for (number, expected) in cases {
            assert_eq!(python_float(number), expected);
        }
    }

    #[test]
    fn what_is_not_json_is_an_error() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        assert!(environment.render_str("{{ nothing | tojson }}", ()).is_err());
        assert!(environment.render_str("{{ 1 | tojson(colour=2) }}", ()).is_err());
    }
}
