//! The text-quality functions in SQL: `word_count(text) > 50 and digit_ratio(text) < 0.2`.

use crate::{
    row::strings,
    text_stats::{self as stats, MIN_WORDS_PER_LINE, STOP_WORDS, WordRuns},
};
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringArray},
        compute::cast,
        datatypes::{DataType, Int64Type},
    },
    common::exec_err,
    error::{DataFusionError, Result},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility},
};
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

/// What a function does with one text; null stays null.
#[derive(Debug, Clone, Copy)]
enum Body {
    Count(fn(&str) -> usize),
    Ratio(fn(&str) -> f64),
    Truth(fn(&str) -> bool),
    Text(fn(&str) -> String),
    /// With the number of words in a run as second argument.
    Runs(fn(&WordRuns, usize) -> f64),
}

/// All functions, by name.
const FUNCTIONS: [(&str, Body); 20] = [
    ("word_count", Body::Count(stats::word_count)),
    ("mean_word_length", Body::Ratio(stats::mean_word_length)),
    ("symbol_ratio", Body::Ratio(stats::symbol_ratio)),
    ("digit_ratio", Body::Ratio(stats::digit_ratio)),
    ("uppercase_ratio", Body::Ratio(stats::uppercase_ratio)),
    ("alpha_word_ratio", Body::Ratio(stats::alpha_word_ratio)),
    ("bullet_line_ratio", Body::Ratio(stats::bullet_line_ratio)),
    ("ellipsis_line_ratio", Body::Ratio(stats::ellipsis_line_ratio)),
    ("terminal_line_ratio", Body::Ratio(stats::terminal_line_ratio)),
    ("stop_word_count", Body::Count(|text| stats::stop_word_count(text, &STOP_WORDS))),
    ("duplicate_line_ratio", Body::Ratio(stats::duplicate_line_ratio)),
    ("duplicate_line_char_ratio", Body::Ratio(stats::duplicate_line_char_ratio)),
    ("duplicate_paragraph_ratio", Body::Ratio(stats::duplicate_paragraph_ratio)),
    ("duplicate_paragraph_char_ratio", Body::Ratio(stats::duplicate_paragraph_char_ratio)),
    ("top_ngram_char_ratio", Body::Runs(WordRuns::top_ngram_char_ratio)),
    ("duplicate_ngram_char_ratio", Body::Runs(WordRuns::duplicate_ngram_char_ratio)),
    ("sentence_count", Body::Count(stats::sentence_count)),
    ("has_curly_bracket", Body::Truth(stats::has_curly_bracket)),
    ("has_lorem_ipsum", Body::Truth(stats::has_lorem_ipsum)),
    ("c4_lines", Body::Text(|text| stats::c4_lines(text, MIN_WORDS_PER_LINE))),
];

/// All functions, for a session.
pub(crate) fn text_functions() -> Vec<ScalarUDF> {
    FUNCTIONS.into_iter().map(|(name, body)| ScalarUDF::from(TextFunction::new(name, body))).collect()
}

#[derive(Debug, Clone)]
struct TextFunction {
    name: &'static str,
    body: Body,
    signature: Signature,
}

impl TextFunction {
    fn new(name: &'static str, body: Body) -> Self {
        let texts = [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View];
        let signature = match body {
            Body::Runs(_) => texts.map(|text| TypeSignature::Exact(vec![text, DataType::Int64])),
            _ => texts.map(|text| TypeSignature::Exact(vec![text])),
        };
        Self { name, body, signature: Signature::one_of(signature.to_vec(), Volatility::Immutable) }
    }
}

// The name says which function it is.
impl PartialEq for TextFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for TextFunction {}

impl Hash for TextFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for TextFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.body {
            Body::Count(_) => DataType::Int64,
            Body::Ratio(_) | Body::Runs(_) => DataType::Float64,
            Body::Truth(_) => DataType::Boolean,
            Body::Text(_) => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let [texts, rest @ ..] = columns.as_slice() else {
            return exec_err!("`{}` was called without a text", self.name);
        };
        let texts = strings(texts).map_err(DataFusionError::Execution)?;
        let each = || texts.iter();
        let result: ArrayRef = match self.body {
            Body::Count(count) => {
                let count = |text: &str| i64::try_from(count(text)).expect("a text fits in memory");
                Arc::new(each().map(|text| text.map(count)).collect::<Int64Array>())
            }
            Body::Ratio(ratio) => Arc::new(each().map(|text| text.map(ratio)).collect::<Float64Array>()),
            Body::Truth(is) => Arc::new(each().map(|text| text.map(is)).collect::<BooleanArray>()),
            Body::Text(make) => Arc::new(each().map(|text| text.map(make)).collect::<StringArray>()),
            Body::Runs(ratio) => {
                let [numbers] = rest else {
                    return exec_err!("`{}` was called without a number of words", self.name);
                };
                let numbers = cast(numbers, &DataType::Int64)?;
                Arc::new(runs(&texts, numbers.as_primitive::<Int64Type>(), self.name, ratio)?)
            }
        };
        Ok(ColumnarValue::Array(result))
    }
}

fn runs(
    texts: &StringArray,
    numbers: &Int64Array,
    name: &str,
    ratio: fn(&WordRuns, usize) -> f64,
) -> Result<Float64Array> {
    let value = |i: usize| match usize::try_from(numbers.value(i)) {
        _ if texts.is_null(i) || numbers.is_null(i) => Ok(None),
        Ok(n) if n > 0 => Ok(Some(ratio(&WordRuns::of(texts.value(i)), n))),
        _ => exec_err!("`{name}` looks at runs of 1 word or more, not {}", numbers.value(i)),
    };
    (0..texts.len()).map(value).collect()
}
