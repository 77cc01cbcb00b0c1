//! The `normalize` step: one spelling for texts that look the same.

use crate::row::strings;
use datafusion::{
    arrow::{
        array::{ArrayRef, StringArray},
        datatypes::DataType,
    },
    error::{DataFusionError, Result},
    logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};

/// Normalisation of text columns. The parts are done in the order of the options here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Normalize {
    /// The columns.
    pub columns: Vec<String>,
    /// Makes `\r\n` and `\r` a newline.
    pub line_endings: bool,
    /// Takes out control characters other than tab, newline and carriage return, and three that nobody sees: the byte-order
    /// mark (U+FEFF), the zero-width space (U+200B) and the soft hyphen (U+00AD).
    pub control: bool,
    /// One sequence of code points for what is the same character.
    pub unicode: UnicodeForm,
    /// What happens to white space.
    pub white_space: WhiteSpace,
}

impl Default for Normalize {
    fn default() -> Self {
        Self {
            columns: vec!["text".to_owned()],
            line_endings: true,
            control: true,
            unicode: UnicodeForm::default(),
            white_space: WhiteSpace::default(),
        }
    }
}

/// The Unicode normalisation forms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnicodeForm {
    /// Composed: `e` and a combining accent become `é`.
    #[default]
    Nfc,
    /// Composed, and characters that look alike become one: `ﬁ` becomes `fi`, full-width letters become plain ones.
    Nfkc,
    /// As it is.
    Keep,
}

/// How much white space is taken out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhiteSpace {
    /// None.
    Keep,
    /// That at both ends of the text.
    #[default]
    Trim,
    /// Runs within a line become one space, ends of lines are trimmed, and of several blank lines one stays.
    Lines,
    /// Every run becomes one space; a text is one line.
    Words,
}

impl Normalize {
    /// The text normalised.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if self.line_endings && text.contains('\r') {
            text = text.replace("\r\n", "\n").replace('\r', "\n");
        }
        if self.control {
            text.retain(is_visible);
        }
        text = match self.unicode {
            UnicodeForm::Nfc if is_nfc_quick(text.chars()) != IsNormalized::Yes => text.nfc().collect(),
            UnicodeForm::Nfkc if is_nfkc_quick(text.chars()) != IsNormalized::Yes => text.nfkc().collect(),
            _ => text,
        };
        match self.white_space {
            WhiteSpace::Keep => text,
            WhiteSpace::Trim => text.trim().to_owned(),
            WhiteSpace::Words => text.split_whitespace().collect::<Vec<_>>().join(" "),
            WhiteSpace::Lines => lines(&text),
        }
    }

    /// `normalize(text)` with these options.
    pub(crate) fn function(&self) -> ScalarUDF {
        let options = self.clone();
        let normalize = move |columns: &[ColumnarValue]| -> Result<ColumnarValue> {
            let columns = ColumnarValue::values_to_arrays(columns)?;
            let texts = columns.first().map(strings).transpose().map_err(DataFusionError::Execution)?;
            let texts = texts.unwrap_or_else(|| StringArray::new_null(0));
            let normalized: StringArray = texts.iter().map(|text| text.map(|text| options.apply(text))).collect();
            Ok(ColumnarValue::Array(Arc::new(normalized) as ArrayRef))
        };
        let Self { line_endings, control, unicode, white_space, .. } = self;
        // A function is known by its name: other options, another name.
        let name = format!(
            "normalize_{}_{}{}{}",
            format!("{unicode:?}").to_lowercase(),
            format!("{white_space:?}").to_lowercase(),
            if *line_endings { "_line_endings" } else { "" },
            if *control { "_control" } else { "" },
        );
        create_udf(&name, vec![DataType::Utf8], DataType::Utf8, Volatility::Immutable, Arc::new(normalize))
    }
}

fn is_visible(c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' => true,
        '\u{feff}' | '\u{200b}' | '\u{ad}' => false,
        c => !c.is_control(),
    }
}

fn lines(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_second_blank = line.is_empty() && lines.last().is_none_or(String::is_empty);
        if !is_second_blank {
            lines.push(line);
        }
    }
    lines.join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain() -> Normalize {
        Normalize {
            line_endings: false,
            control: false,
            unicode: UnicodeForm::Keep,
            white_space: WhiteSpace::Keep,
            ..Normalize::default()
        }
    }

    #[test]
    fn each_option_does_its_own_and_nothing_else() {
        let text = " e\u{301} \u{fb01}\u{feff}x\u{7} \r\n\n\n\n\t b  c \r";
        assert_eq!(plain().apply(text), text);
        let apply = |options: Normalize| options.apply(text);
        assert_eq!(
            apply(Normalize { line_endings: true, ..plain() }),
            " e\u{301} \u{fb01}\u{feff}x\u{7} \n\n\n\n\t b  c \n"
        );
        assert_eq!(apply(Normalize { control: true, ..plain() }), " e\u{301} \u{fb01}x \r\n\n\n\n\t b  c \r");
        assert_eq!(
            apply(Normalize { unicode: UnicodeForm::Nfc, ..plain() }),
            " é \u{fb01}\u{feff}x\u{7} \r\n\n\n\n\t b  c \r"
        );
        assert_eq!(
            apply(Normalize { unicode: UnicodeForm::Nfkc, ..plain() }),
            " é fi\u{feff}x\u{7} \r\n\n\n\n\t b  c \r"
        );
        assert_eq!(
            apply(Normalize { white_space: WhiteSpace::Trim, ..plain() }),
            "e\u{301} \u{fb01}\u{feff}x\u{7} \r\n\n\n\n\t b  c"
        );
        assert_eq!(
            apply(Normalize { white_space: WhiteSpace::Lines, ..plain() }),
            "e\u{301} \u{fb01}\u{feff}x\u{7}\n\nb c"
        );
        assert_eq!(
            apply(Normalize { white_space: WhiteSpace::Words, ..plain() }),
            "e\u{301} \u{fb01}\u{feff}x\u{7} b c"
        );
        assert_eq!(apply(Normalize::default()), "é \u{fb01}x \n\n\n\n\t b  c");
    }

    proptest! {
        #[test]
        fn a_normal_text_stays_as_it_is(text in any::<String>(), form in 0..3, space in 0..4) {
            let unicode = [UnicodeForm::Nfc, UnicodeForm::Nfkc, UnicodeForm::Keep][form as usize];
            let white_space =
                [WhiteSpace::Keep, WhiteSpace::Trim, WhiteSpace::Lines, WhiteSpace::Words][space as usize];
            let options = Normalize { unicode, white_space, ..Normalize::default() };
            let once = options.apply(&text);
            prop_assert_eq!(options.apply(&once), once);
        }
    }
}
