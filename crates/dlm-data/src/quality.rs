//! The `quality` step: leaves out rows that published rules take for debris, and counts them by rule.

use crate::{
    error::{DataError, Result},
    ledger::StepCounter,
    scan::RowMap,
    stage::BatchStage,
    text_stats::{self as stats, MIN_WORDS_PER_LINE, STOP_WORDS, WordRuns},
};
use datafusion::arrow::{
    array::{Array, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::SchemaRef,
};
use serde::{Deserialize, Serialize};
use std::{cell::OnceCell, sync::Arc};

/// A set of rules that was published together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QualityRules {
    /// What Gopher's corpus has to be like ([arXiv:2112.11446](https://arxiv.org/abs/2112.11446), A.1.1, quality filtering).
    Gopher,
    /// How often it may repeat itself (the same, table A1).
    Repetition,
    /// C4's rules for pages (Raffel et al., JMLR 21:140, section 2.2), judged by the lines that C4 keeps. The text stays
    /// whole: `map = { text = "c4_lines(text)" }` takes out the other lines.
    C4,
}

impl QualityRules {
    fn name(self) -> &'static str {
        match self {
            Self::Gopher => "gopher",
            Self::Repetition => "repetition",
            Self::C4 => "c4",
        }
    }
}

/// A text while it is judged.
struct Page<'a> {
    text: &'a str,
    runs: OnceCell<WordRuns>,
    kept: OnceCell<String>,
    options: &'a Quality,
}

impl Page<'_> {
    fn runs(&self) -> &WordRuns {
        self.runs.get_or_init(|| WordRuns::of(self.text))
    }

    /// The lines that C4 keeps.
    fn kept(&self) -> &str {
        let min_words = self.options.min_words_per_line.unwrap_or(MIN_WORDS_PER_LINE);
        self.kept.get_or_init(|| stats::c4_lines(self.text, min_words))
    }
}

/// One rule: a number of a text, and what it may be.
struct Rule {
    key: &'static str,
    rules: QualityRules,
    is_least: bool,
    threshold: f64,
    is_set: bool,
    value: fn(&Page) -> f64,
}

/// Writes the thresholds down once: as options, and as rules.
macro_rules! thresholds {
    ($($(#[$doc:meta])* $key:ident = $published:literal, $rules:ident, $bound:ident $value:expr;)*) => {
        /// Which rules a text has to meet. Every threshold has the published value unless it is set.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Quality {
            /// The column of text.
            pub column: String,
            /// The sets of rules.
            pub rules: Vec<QualityRules>,
            /// The words that `min_stop_words` counts, in lower case; unset: Gopher's eight.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub stop_words: Option<Vec<String>>,
            /// Words in a line that C4 keeps; unset: 3.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub min_words_per_line: Option<usize>,
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $key: Option<f64>,)*
        }

        impl Default for Quality {
            fn default() -> Self {
                Self {
                    column: "text".to_owned(),
                    rules: vec![QualityRules::Gopher, QualityRules::Repetition],
                    stop_words: None,
                    min_words_per_line: None,
                    $($key: None,)*
                }
            }
        }

        impl Quality {
            fn all_rules(&self) -> Vec<Rule> {
                vec![$(Rule {
                    key: stringify!($key),
                    rules: QualityRules::$rules,
                    is_least: stringify!($bound) == "least",
                    threshold: self.$key.unwrap_or($published),
                    is_set: self.$key.is_some(),
                    value: $value,
                },)*]
            }
        }
    };
}

thresholds! {
    /// Gopher: words at least (50).
    min_words = 50.0, Gopher, least |page| stats::word_count(page.text) as f64;
    /// Gopher: words at most (100 000).
    max_words = 100_000.0, Gopher, most |page| stats::word_count(page.text) as f64;
    /// Gopher: mean length of a word at least (3 characters).
    min_mean_word_length = 3.0, Gopher, least |page| stats::mean_word_length(page.text);
    /// Gopher: mean length of a word at most (10 characters).
    max_mean_word_length = 10.0, Gopher, most |page| stats::mean_word_length(page.text);
    /// Gopher: `#` or ellipses per word at most (0.1).
    max_symbol_ratio = 0.1, Gopher, most |page| stats::symbol_ratio(page.text);
    /// Gopher: share of lines that begin with a bullet at most (0.9).
    max_bullet_lines = 0.9, Gopher, most |page| stats::bullet_line_ratio(page.text);
    /// Gopher: share of lines that end with an ellipsis at most (0.3).
    max_ellipsis_lines = 0.3, Gopher, most |page| stats::ellipsis_line_ratio(page.text);
    /// Gopher: share of words with a letter at least (0.8).
    min_alpha_words = 0.8, Gopher, least |page| stats::alpha_word_ratio(page.text);
    /// Gopher: different stop words at least (2).
    min_stop_words = 2.0, Gopher, least |page| match &page.options.stop_words {
        Some(words) => stats::stop_word_count(page.text, words) as f64,
        None => stats::stop_word_count(page.text, &STOP_WORDS) as f64,
    };
    /// Repetition: share of lines that came before at most (0.3).
    max_duplicate_lines = 0.3, Repetition, most |page| stats::duplicate_line_ratio(page.text);
    /// Repetition: share of paragraphs that came before at most (0.3).
    max_duplicate_paragraphs = 0.3, Repetition, most |page| stats::duplicate_paragraph_ratio(page.text);
    /// Repetition: share of characters in lines that came before at most (0.2).
    max_duplicate_line_chars = 0.2, Repetition, most |page| stats::duplicate_line_char_ratio(page.text);
    /// Repetition: share of characters in paragraphs that came before at most (0.2).
    max_duplicate_paragraph_chars = 0.2, Repetition, most |page| stats::duplicate_paragraph_char_ratio(page.text);
    /// Repetition: share of characters in the most frequent run of 2 words at most (0.2).
    max_top_2gram = 0.2, Repetition, most |page| page.runs().top_ngram_char_ratio(2);
    /// Repetition: the same of 3 words (0.18).
    max_top_3gram = 0.18, Repetition, most |page| page.runs().top_ngram_char_ratio(3);
    /// Repetition: the same of 4 words (0.16).
    max_top_4gram = 0.16, Repetition, most |page| page.runs().top_ngram_char_ratio(4);
    /// Repetition: share of characters in runs of 5 words that come more than once at most (0.15).
    max_duplicate_5gram = 0.15, Repetition, most |page| page.runs().duplicate_ngram_char_ratio(5);
    /// Repetition: the same of 6 words (0.14).
    max_duplicate_6gram = 0.14, Repetition, most |page| page.runs().duplicate_ngram_char_ratio(6);
    /// Repetition: the same of 7 words (0.13).
    max_duplicate_7gram = 0.13, Repetition, most |page| page.runs().duplicate_ngram_char_ratio(7);
    /// Repetition: the same of 8 words (0.12).
    max_duplicate_8gram = 0.12, Repetition, most |page| page.runs().duplicate_ngram_char_ratio(8);
    /// Repetition: the same of 9 words (0.11).
    max_duplicate_9gram = 0.11, Repetition, most |page| page.runs().duplicate_ngram_char_ratio(9);
    /// Repetition: the same of 10 words (0.10).
    max_duplicate_10gram = 0.10, Repetition, most |page| page.runs().duplicate_ngram_char_ratio(10);
    /// C4: sentences in the kept lines at least (5).
    min_sentences = 5.0, C4, least |page| stats::sentence_count(page.kept()) as f64;
    /// C4: curly brackets at most (0).
    max_curly_brackets = 0.0, C4, most |page| page.text.matches(['{', '}']).count() as f64;
    /// C4: times that "lorem ipsum" is said at most (0).
    max_lorem_ipsum = 0.0, C4, most |page| page.text.to_lowercase().matches("lorem ipsum").count() as f64;
}

impl Quality {
    /// These sets of rules with the published thresholds, on the column `text`.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = QualityRules>) -> Self {
        Self { rules: rules.into_iter().collect(), ..Self::default() }
    }

    /// The first rule that a text breaks, as `gopher.min_words`; none when it is good.
    #[must_use]
    pub fn verdict(&self, text: &str) -> Option<String> {
        let rules: Vec<Rule> = self.rules_in_force().collect();
        self.judge(&rules, text).map(Rule::name)
    }

    fn rules_in_force(&self) -> impl Iterator<Item = Rule> {
        self.all_rules().into_iter().filter(|rule| self.rules.contains(&rule.rules))
    }

    fn judge<'a>(&self, rules: &'a [Rule], text: &str) -> Option<&'a Rule> {
        let page = Page { text, runs: OnceCell::new(), kept: OnceCell::new(), options: self };
        rules.iter().find(|rule| {
            let value = (rule.value)(&page);
            if rule.is_least { value < rule.threshold } else { value > rule.threshold }
        })
    }

    /// Says what is wrong with the options.
    pub(crate) fn check(&self) -> Result<()> {
        let lacks = |rules: QualityRules, key: &str| {
            let name = rules.name();
            DataError::pipeline(format!("`quality.{key}` has no effect without \"{name}\" among `quality.rules`"))
        };
        if self.rules.is_empty() {
            return Err(DataError::pipeline("`quality.rules` is empty, and has to be a list of rules"));
        }
        for rule in self.all_rules().iter().filter(|rule| rule.is_set) {
            if !self.rules.contains(&rule.rules) {
                return Err(lacks(rule.rules, rule.key));
            }
            if !(rule.threshold >= 0.0 && rule.threshold.is_finite()) {
                let (key, value) = (rule.key, rule.threshold);
                return Err(DataError::pipeline(format!("`quality.{key}` is {value}, and has to be 0 or more")));
            }
        }
        let in_force: Vec<Rule> = self.rules_in_force().collect();
        for least in in_force.iter().filter(|rule| rule.is_least) {
            let other = least.key.strip_prefix("min_").map(|what| format!("max_{what}"));
            let most = in_force.iter().find(|rule| Some(rule.key) == other.as_deref());
            if let Some(most) = most.filter(|most| most.threshold < least.threshold) {
                return Err(DataError::pipeline(format!(
                    "no text can meet both `quality.{}`, {}, and `quality.{}`, {}",
                    least.key, least.threshold, most.key, most.threshold
                )));
            }
        }
        if self.stop_words.is_some() && !self.rules.contains(&QualityRules::Gopher) {
            return Err(lacks(QualityRules::Gopher, "stop_words"));
        }
        if self.min_words_per_line.is_some() && !self.rules.contains(&QualityRules::C4) {
            return Err(lacks(QualityRules::C4, "min_words_per_line"));
        }
        Ok(())
    }
}

impl Rule {
    fn name(&self) -> String {
        format!("{}.{}", self.rules.name(), self.key)
    }
}

/// The quality step in a plan.
#[derive(Debug)]
pub(crate) struct QualityStage {
    pub(crate) step: Quality,
    pub(crate) input: SchemaRef,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) counter: Arc<StepCounter>,
    pub(crate) threads: usize,
}

impl BatchStage for QualityStage {
    fn name(&self) -> &'static str {
        "Quality"
    }

    fn options(&self) -> String {
        let rule = |rule: Rule| format!("{} {}", rule.name(), rule.threshold);
        format!("{}: {}", self.step.column, self.step.rules_in_force().map(rule).collect::<Vec<_>>().join(", "))
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.input)
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn map(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let texts = self.rows.texts(batch, &self.step.column)?;
        let rules: Vec<Rule> = self.step.rules_in_force().collect();
        let mut broken = vec![0; rules.len()];
        let mut is_good = Vec::with_capacity(texts.len());
        for i in 0..texts.len() {
            let verdict = self.step.judge(&rules, texts.value(i));
            if let Some(at) = verdict.and_then(|found| rules.iter().position(|rule| rule.key == found.key)) {
                broken[at] += 1;
            }
            is_good.push(verdict.is_none());
        }
        for (rule, count) in rules.iter().zip(broken) {
            self.counter.because(&rule.name(), count);
        }
        let good = filter_record_batch(batch, &BooleanArray::from(is_good));
        good.map_err(|error| DataError::from_datafusion(error.into(), "quality"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 73 words without a fault.
    const GOOD: &str = "The lighthouse keeper rose before dawn and climbed the narrow stairs.\n\
        Fog lay over the harbour, so he lit the lamp again.\n\
        Two boats came home with nets full of silver herring.\n\
        His daughter counted the barrels and wrote each number down.\n\
        Nobody in town remembered a colder morning than this one.\n\
        By noon the wind had turned, and gulls followed it inland.\n\
        They would have stayed to watch, but supper was waiting.";

    fn without_stop_words() -> String {
        let words = GOOD.split_whitespace().filter(|word| !STOP_WORDS.contains(&word.to_lowercase().as_str()));
        words.collect::<Vec<_>>().join(" ")
    }

    fn all() -> Quality {
        Quality::new([QualityRules::Gopher, QualityRules::Repetition, QualityRules::C4])
    }

    /// All rules, of which one has a threshold: the others allow everything.
    fn only(key: &str, value: f64) -> Quality {
        let mut table = toml::Table::new();
        for rule in all().all_rules() {
            let loose = if rule.is_least { 0.0 } else { 1e9 };
            let value = if rule.key == key { value } else { loose };
            table.insert(rule.key.to_owned(), toml::Value::Float(value));
        }
        table.insert("rules".to_owned(), toml::Value::try_from(["gopher", "repetition", "c4"]).unwrap());
        table.try_into().unwrap()
    }

    #[test]
    fn a_good_text_breaks_no_rule_and_every_rule_can_be_broken_and_loosened() {
        let lenient = only("", 0.0);
        assert_eq!(all().all_rules().len(), 25);
        for rule in all().all_rules() {
            let bad = match rule.key {
                "min_words" => "The keeper of the lamp.".to_owned(),
                "max_words" => "the keeper of lamps ".repeat(25_001),
                "min_mean_word_length" => "a of b to ".repeat(30),
                "max_mean_word_length" => "extraordinarily of incomprehensibilities ".repeat(30),
                "max_symbol_ratio" => format!("{GOOD}{}", " #".repeat(12)),
                "max_bullet_lines" => GOOD.lines().map(|line| format!("- {line}\n")).collect(),
                "max_ellipsis_lines" => GOOD.lines().map(|line| format!("{line}..\n")).collect(),
                "min_alpha_words" => format!("{GOOD}{}", " 12".repeat(40)),
                "min_stop_words" => without_stop_words(),
                "max_curly_brackets" => format!("{GOOD}\nif (a) {{ b }}"),
                "max_lorem_ipsum" => format!("{GOOD}\nLorem ipsum dolor sit."),
                "min_sentences" => GOOD.replace('.', ""),
                key if key.starts_with("max_top") => "the cat sat down ".repeat(30),
                _ => format!("{GOOD}\n\n").repeat(4),
            };
            let strict = only(rule.key, rule.threshold);
            assert_eq!(strict.verdict(&bad), Some(rule.name()), "{bad}");
            assert_eq!(strict.verdict(GOOD), None, "{}", rule.key);
            assert_eq!(lenient.verdict(&bad), None, "{}", rule.key);
        }
        assert_eq!(all().verdict(GOOD), None);
    }

    #[test]
    fn stop_words_and_line_lengths_can_be_others() {
        let german = format!("{} Die Katze mit Hut.", without_stop_words());
        assert_eq!(all().verdict(&german).as_deref(), Some("gopher.min_stop_words"));
        let words = vec!["die".to_owned(), "mit".to_owned()];
        assert_eq!(Quality { stop_words: Some(words), ..all() }.verdict(&german), None);
        let long_lines = Quality { min_words_per_line: Some(14), ..Quality::new([QualityRules::C4]) };
        assert_eq!(long_lines.verdict(GOOD).as_deref(), Some("c4.min_sentences"));
    }

    #[test]
    fn an_option_without_its_rules_is_an_error() {
        let says = |options: Quality| options.check().unwrap_err().to_string();
        let c4 = || Quality::new([QualityRules::C4]);
        assert!(
            says(Quality { min_words: Some(3.0), ..c4() })
                .contains("`quality.min_words` has no effect without \"gopher\"")
        );
        assert!(says(Quality { max_top_2gram: Some(0.3), ..c4() }).contains("without \"repetition\""));
        assert!(says(Quality { stop_words: Some(Vec::new()), ..c4() }).contains("stop_words"));
        assert!(says(Quality { min_words_per_line: Some(1), ..Quality::default() }).contains("without \"c4\""));
        assert!(says(Quality::new([])).contains("empty"));
        assert!(says(Quality { max_words: Some(-1.0), ..Quality::default() }).contains("is -1"));
        assert!(Quality { min_words: Some(3.0), ..Quality::default() }.check().is_ok());
    }
}
