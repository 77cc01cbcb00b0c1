//! The steps and functions that look at texts.

use super::{account, finish, over, says, texts_of};
use crate::support::prepare;
use dlm_data::{Normalize, Quality, QualityRules, StepAccount, UnicodeForm, WhiteSpace};
use serde_json::json;
use std::collections::BTreeMap;

#[test]
fn normalize_changes_the_named_columns_by_its_options() {
    let (_folder, pipeline) = over([json!({ "text": " e\u{301}\r\n \u{fb01} ", "other": " x ", "null": null })]);
    assert_eq!(texts_of(&pipeline.clone().normalize(Normalize::default())), ["é\n \u{fb01}"]);
    let options = Normalize { unicode: UnicodeForm::Nfkc, white_space: WhiteSpace::Words, ..Normalize::default() };
    assert_eq!(texts_of(&pipeline.clone().normalize(options)), ["é fi"]);
    let columns = vec!["text".to_owned(), "other".to_owned()];
    let both = pipeline.clone().normalize(Normalize { columns, ..Normalize::default() }).map([("text", "other")]);
    assert_eq!(texts_of(&both), ["x"]);
    let absent = Normalize { columns: vec!["txt".to_owned()], ..Normalize::default() };
    assert!(says(&pipeline.normalize(absent)).contains("normalize: there is no column `txt`"));
}

#[test]
fn text_functions_work_in_any_expression_and_keep_null_null() {
    let (_folder, pipeline) = over([json!({ "text": "Ab 1 # the cat\n- the cat", "none": null, "n": 2 })]);
    let value = |expression: &str| {
        let mapped = pipeline.clone().map([("text", format!("cast({expression} as text)"))]);
        texts_of(&mapped).pop()
    };
    for (expression, expected) in [
        ("word_count(text)", "8"),
        ("mean_word_length(text) > 2.1", "true"),
        ("round(symbol_ratio(text), 3)", "0.125"),
        ("round(digit_ratio(text), 3)", "0.059"),
        ("round(uppercase_ratio(text), 3)", "0.071"),
        ("alpha_word_ratio(text)", "0.625"),
        ("bullet_line_ratio(text)", "0.5"),
        ("ellipsis_line_ratio(text || '...')", "0.5"),
        ("terminal_line_ratio(text || '.')", "0.5"),
        ("stop_word_count(text)", "1"),
        ("duplicate_line_ratio('a' || chr(10) || 'a')", "0.5"),
        ("duplicate_line_char_ratio('a' || chr(10) || 'a')", "0.5"),
        ("duplicate_paragraph_ratio('a' || chr(10) || chr(10) || 'a')", "0.5"),
        ("duplicate_paragraph_char_ratio('a' || chr(10) || chr(10) || 'a')", "0.5"),
        ("round(top_ngram_char_ratio(text, 2), 3)", "0.706"),
        ("round(duplicate_ngram_char_ratio(text, n), 3)", "0.706"),
        ("sentence_count('One. Two!')", "2"),
        ("has_curly_bracket('{')", "true"),
        ("has_lorem_ipsum('Lorem ipsum')", "true"),
        ("c4_lines('It is late now.' || chr(10) || 'Menu')", "It is late now."),
        // Functions of DataFusion give other types of text.
        ("word_count(substr(text, 1, 4))", "2"),
    ] {
        assert_eq!(value(expression).as_deref(), Some(expected), "{expression}");
    }
    assert_eq!(value("word_count(none)"), None);
    assert_eq!(value("top_ngram_char_ratio(none, 2)"), None);
    let zero = says(&pipeline.clone().filter("top_ngram_char_ratio(text, n - 2) > 0"));
    assert!(zero.contains("runs of 1 word or more, not 0"), "{zero}");
    assert!(says(&pipeline.filter("word_counts(text) > 1")).contains("word_count"));
}

#[test]
fn quality_drops_what_its_rules_name_and_the_manifest_counts_by_rule() {
    let good = "The lamp was lit and the boats came home to a quiet harbour. ";
    let rows_of = |text: &str| json!({ "text": text });
    let menu = "- Homepage\n- Newspaper\n- The bookshop\n- Terms and of\n";
    let (_folder, pipeline) = over([
        rows_of(good),
        rows_of("Too short."),
        rows_of(menu),
        rows_of("Bad {code} and of the words in here now."),
    ]);
    let quality = Quality {
        min_words: Some(5.0),
        min_sentences: Some(1.0),
        ..Quality::new([QualityRules::Gopher, QualityRules::C4])
    };
    let filtered = pipeline.clone().quality(quality.clone());
    assert_eq!(texts_of(&filtered), [good]);
    let report = prepare(&finish(filtered)).unwrap();
    let expected = [("c4.max_curly_brackets", 1), ("gopher.max_bullet_lines", 1), ("gopher.min_words", 1)];
    let expected: BTreeMap<String, u64> = expected.map(|(rule, rows)| (rule.to_owned(), rows)).into();
    assert_eq!(
        account(&report, "step.0.quality"),
        &StepAccount { step: "step.0.quality".to_owned(), rows: 1, reasons: expected }
    );

    let gopher = Quality { min_words: Some(5.0), ..Quality::new([QualityRules::Gopher]) };
    assert_eq!(texts_of(&pipeline.clone().quality(gopher)).len(), 2);
    let other = pipeline.clone().map([("other", "text"), ("text", "'x'")]);
    let other = other.quality(Quality { column: "other".to_owned(), ..quality.clone() });
    assert_eq!(texts_of(&other), ["x"]);
    let null = pipeline.clone().map([("text", "case when text like 'Too%' then null else text end")]).quality(quality);
    assert!(says(&null).contains("row 2: `text` is null"));
    assert!(says(&pipeline.clone().quality(Quality::new([]))).contains("`quality.rules` is empty"));
    assert!(says(&pipeline.map([("text", "1")]).quality(Quality::default())).contains("has to be text"));
}
