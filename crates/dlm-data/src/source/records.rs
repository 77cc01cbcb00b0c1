//! A text file cut into rows, a chunk of them at a time.

use super::{bytes::Content, csv, json_list, options::TextDocument};
use std::io::{self, BufRead};

/// How rows are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Each line that is not blank.
    Lines,
    /// The elements of a JSON list.
    JsonList,
    /// The records of a CSV file: lines, but for those that end within quotes.
    Csv { separator: u8 },
    /// What stands between two of these.
    Separator(Vec<u8>),
    /// Everything is one row.
    Whole,
}

impl From<&TextDocument> for Cut {
    fn from(document: &TextDocument) -> Self {
        match document {
            TextDocument::File => Self::Whole,
            TextDocument::Line => Self::Lines,
            TextDocument::Separator(separator) => Self::Separator(separator.clone().into_bytes()),
        }
    }
}

/// Rows of a file, in order and without a gap.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// The number of its first row in the file, counted from 0.
    pub(crate) first_row: u64,
    bytes: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    start: usize,
    end: usize,
    line: u64,
}

/// One row as it stands in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raw<'a> {
    /// Its number in the file, counted from 0.
    pub(crate) row: u64,
    /// The line it begins at, counted from 1.
    pub(crate) line: u64,
    pub(crate) bytes: &'a [u8],
}

impl Chunk {
    /// The rows.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Raw<'_>> {
        self.records.iter().zip(self.first_row..).map(|(record, row)| Raw {
            row,
            line: record.line,
            bytes: &self.bytes[record.start..record.end],
        })
    }

    /// How many rows.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// How many bytes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// Where a file stops being readable.
#[derive(Debug)]
pub(crate) struct Broken {
    /// The row, counted from 0, that could not be read.
    pub(crate) row: u64,
    /// The line it begins at, counted from 1.
    pub(crate) line: u64,
    pub(crate) message: String,
}

/// Cuts a file into rows.
pub(crate) struct Records {
    content: Content,
    cut: Cut,
    row: u64,
    line: u64,
    place: Place,
    /// What is to be said once the rows before it were handed out.
    broken: Option<Broken>,
}

/// Where in a file the next record begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Start,
    Within,
    /// Behind the last one, where nothing may follow.
    Behind,
    End,
}

impl Records {
    pub(crate) fn new(content: Content, cut: Cut) -> Self {
        Self { content, cut, row: 0, line: 1, place: Place::Start, broken: None }
    }

    /// Gives the next row the number 0.
    pub(crate) fn count_from_here(&mut self) {
        self.row = 0;
    }

    /// The next rows: at most so many, and no more once they have so many bytes. A row longer than that comes alone.
    pub(crate) fn next_chunk(&mut self, rows: usize, bytes: usize) -> Result<Option<Chunk>, Broken> {
        let mut chunk = Chunk { first_row: self.row, ..Chunk::default() };
        while chunk.records.len() < rows && chunk.bytes.len() < bytes && self.place != Place::End {
            let start = chunk.bytes.len();
            match self.next_record(&mut chunk.bytes) {
                Ok(true) => self.add(&mut chunk, start),
                Ok(false) => self.place = Place::End,
                Err(error) => {
                    chunk.bytes.truncate(start);
                    self.place = Place::End;
                    self.broken = Some(Broken { row: self.row, line: self.line, message: error.to_string() });
                }
            }
        }
        // The rows before are good.
        if let Some(broken) = self.broken.take_if(|_| chunk.records.is_empty()) {
            return Err(broken);
        }
        Ok(Some(chunk).filter(|chunk| !chunk.records.is_empty()))
    }

    /// Makes a row of the bytes from `start` on, unless they are blank.
    fn add(&mut self, chunk: &mut Chunk, start: usize) {
        let whole = &chunk.bytes[start..];
        let record = self.without_end(whole);
        let is_blank = record.trim_ascii_start().is_empty();
        // Lines are counted where they can be more than one.
        let (lines, lines_before) = match self.cut {
            Cut::Lines => (1, 0),
            Cut::Whole => (0, 0),
            _ => (line_ends(whole), line_ends(record) - line_ends(record.trim_ascii_start())),
        };
        let line = self.line + lines_before;
        self.line += lines;
        if is_blank && !matches!(self.cut, Cut::Whole | Cut::JsonList) {
            chunk.bytes.truncate(start);
            return;
        }
        let end = start + record.len();
        let start = if self.cut == Cut::JsonList { end - record.trim_ascii_start().len() } else { start };
        chunk.records.push(Record { start, end, line });
        self.row += 1;
    }

    /// Appends one record with what ends it; false at the end of the file.
    fn next_record(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        match &self.cut {
            Cut::Lines => Ok(self.content.read_until(b'\n', into)? > 0),
            Cut::Whole if self.place == Place::Start => {
                self.place = Place::Within;
                self.content.read_to_end(into)?;
                Ok(true)
            }
            Cut::Whole => Ok(false),
            Cut::Separator(separator) => {
                let start = into.len();
                let last = *separator.last().expect("an empty separator was refused");
                while self.content.read_until(last, into)? > 0 && !into[start..].ends_with(separator) {}
                Ok(into.len() > start)
            }
            Cut::Csv { separator } => csv::next_record(&mut self.content, into, *separator),
            Cut::JsonList => json_list::next_element(&mut self.content, into, &mut self.place),
        }
    }

    fn without_end<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        match &self.cut {
            Cut::Lines | Cut::Csv { .. } => {
                let line = record.strip_suffix(b"\n").unwrap_or(record);
                line.strip_suffix(b"\r").unwrap_or(line)
            }
            Cut::Separator(separator) => record.strip_suffix(separator.as_slice()).unwrap_or(record),
            Cut::Whole => record,
            Cut::JsonList => &record[..record.len() - 1], // a comma or a bracket
        }
    }
}

fn line_ends(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn cut(text: &str, cut: Cut, rows: usize) -> (Vec<(u64, u64, String)>, Option<Broken>) {
        let mut records = Records::new(Box::new(Cursor::new(text.as_bytes().to_vec())), cut);
        let mut found = Vec::new();
        loop {
            match records.next_chunk(rows, 1 << 20) {
                Ok(None) => return (found, None),
                Err(broken) => return (found, Some(broken)),
                Ok(Some(chunk)) => {
                    assert!(chunk.len() <= rows && chunk.size() > 0);
                    let text = |raw: Raw| String::from_utf8(raw.bytes.to_vec()).unwrap();
                    found.extend(chunk.rows().map(|raw| (raw.row, raw.line, text(raw))));
                }
            }
        }
    }

    fn rows(expected: &[(u64, u64, &str)]) -> Vec<(u64, u64, String)> {
        expected.iter().map(|(row, line, text)| (*row, *line, (*text).to_owned())).collect()
    }

    #[test]
    fn rows_carry_their_number_and_line_and_blank_ones_are_none() {
        for chunk in [1, 2, 100] {
            let (found, broken) = cut("a\n\n \nb\r\nc", Cut::Lines, chunk);
            assert!(broken.is_none());
            assert_eq!(found, rows(&[(0, 1, "a"), (1, 4, "b"), (2, 5, "c")]));

            let (found, _) = cut("one\ntwo\n--\n--\nthree--", Cut::Separator(b"\n--\n".to_vec()), chunk);
            assert_eq!(found, rows(&[(0, 1, "one\ntwo"), (1, 4, "--\nthree--")]));

            let (found, _) = cut("a,b\n\"x\ny\",\"\"\"\"\n1,2\n", Cut::Csv { separator: b',' }, chunk);
            assert_eq!(found, rows(&[(0, 1, "a,b"), (1, 2, "\"x\ny\",\"\"\"\""), (2, 4, "1,2")]));

            let (found, _) = cut(" [{\"a\": \"],\\\"\"},\n{\"b\": [1, 2]}\n]\n", Cut::JsonList, chunk);
            let found: Vec<_> = found.iter().map(|(row, line, text)| (*row, *line, text.trim())).collect();
            assert_eq!(found, [(0, 1, "{\"a\": \"],\\\"\"}"), (1, 2, "{\"b\": [1, 2]}")]);
        }
    }

    #[test]
    fn a_list_that_is_cut_off_or_goes_on_is_broken_where_that_happens() {
        let (found, broken) = cut("[{\"a\": 1},\n{\"a\": 2", Cut::JsonList, 9);
        assert_eq!((found.len(), broken.unwrap().row), (1, 1));
        let (found, broken) = cut("[1, 2] 3", Cut::JsonList, 9);
        assert_eq!((found.len(), broken.unwrap().row), (2, 2));
        assert_eq!(cut("[]\n", Cut::JsonList, 9).0, rows(&[]));
        let (found, broken) = cut("a\n\"b\n", Cut::Csv { separator: b',' }, 9);
        assert_eq!((found.len(), broken.unwrap().row), (1, 1));
    }
}
