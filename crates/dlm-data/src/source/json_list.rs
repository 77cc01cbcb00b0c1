//! The elements of a JSON list, found without reading what they say.

use super::{bytes::Content, records::Place};
use std::io::{self, BufRead};

/// Appends the next element with the comma or bracket that ends it; false behind the last one.
pub(crate) fn next_element(content: &mut Content, into: &mut Vec<u8>, place: &mut Place) -> io::Result<bool> {
    let start = into.len();
    let is_first = *place == Place::Start;
    if is_first {
        content.read_until(b'[', into)?;
        if let Some(bracket) = into[start..].last_mut() {
            *bracket = b' ';
        }
        *place = Place::Within;
    }
    if *place == Place::Behind {
        nothing_follows(content)?;
        return Ok(false);
    }
    let mut scan = Scan::default();
    loop {
        let available = content.fill_buf()?;
        if available.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends within the list"));
        }
        let Some(end) = available.iter().position(|byte| scan.ends_at(*byte)) else {
            let length = available.len();
            into.extend_from_slice(available);
            content.consume(length);
            continue;
        };
        let is_last = available[end] == b']';
        into.extend_from_slice(&available[..=end]);
        content.consume(end + 1);
        if !is_last {
            return Ok(true);
        }
        *place = Place::Behind;
        if is_first && into[start..into.len() - 1].trim_ascii().is_empty() {
            nothing_follows(content)?;
            return Ok(false);
        }
        return Ok(true);
    }
}

/// How deep in brackets and quotes the scan is.
#[derive(Debug, Default)]
struct Scan {
    depth: usize,
    in_text: bool,
    is_escaped: bool,
}

impl Scan {
    /// Whether an element ends before this byte.
    fn ends_at(&mut self, byte: u8) -> bool {
        if self.in_text {
            self.in_text = self.is_escaped || byte != b'"';
            self.is_escaped = !self.is_escaped && byte == b'\\';
            return false;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => self.depth -= 1,
            b',' | b']' => return self.depth == 0,
            _ => {}
        }
        false
    }
}

fn nothing_follows(content: &mut Content) -> io::Result<()> {
    loop {
        let rest = content.fill_buf()?;
        if rest.is_empty() {
            return Ok(());
        }
        if !rest.trim_ascii().is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something follows the list"));
        }
        let length = rest.len();
        content.consume(length);
    }
}
