//! The steps that compare texts: with each other, and with evaluation sets.

use super::{account, families, finish, over, says, texts_of, words};
use crate::support::{prepare, texts, write_jsonl};
use dlm_data::{DataError, Decontaminate, Found, NearDedup, Pipeline, Resources};
use serde_json::json;
use std::{collections::BTreeSet, fs};

fn jaccard(a: &str, b: &str, n: usize) -> f64 {
    let set = |text: &str| {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        words.windows(n).map(<[String]>::to_vec).collect::<BTreeSet<_>>()
    };
    let (a, b) = (set(a), set(b));
    a.intersection(&b).count() as f64 / a.union(&b).count() as f64
}

#[test]
fn near_dedup_agrees_with_brute_force_where_similarity_is_clear() {
    let families = families();
    let (_folder, pipeline) = over(families.iter().map(|(text, _)| json!({ "text": text })));
    let near = NearDedup { permutations: 256, threshold: 0.7, ..NearDedup::default() };
    let kept: BTreeSet<String> = texts_of(&pipeline.clone().near_dedup(near.clone())).into_iter().collect();

    // Exactly: a row goes if it is similar to an earlier one that stays. The estimate may err near the threshold alone.
    let (mut clear_duplicates, mut found, mut clear_others, mut lost) = (0, 0, 0, 0);
    for (i, (text, family)) in families.iter().enumerate() {
        let earlier = families[..i].iter().filter(|(other, of)| of == family && kept.contains(other));
        let most = earlier.map(|(other, _)| jaccard(text, other, 5)).fold(0.0, f64::max);
        if most > 0.8 {
            clear_duplicates += 1;
            found += usize::from(!kept.contains(text));
        } else if most < 0.6 {
            clear_others += 1;
            lost += usize::from(!kept.contains(text));
        }
    }
    assert!(clear_duplicates > 40 && clear_others > 120, "{clear_duplicates} and {clear_others}");
    assert!(found as f64 >= 0.97 * clear_duplicates as f64, "recall: {found} of {clear_duplicates}");
    assert_eq!(lost, 0, "of {clear_others} that are no duplicates");
    // Of rows that stay no two were found similar.
    for (i, (text, family)) in families.iter().enumerate().filter(|(_, (text, _))| kept.contains(text)) {
        for (other, of) in &families[..i] {
            assert!(of != family || !kept.contains(other) || jaccard(text, other, 5) < 0.8);
        }
    }
}

#[test]
fn every_option_of_near_dedup_has_an_effect() {
    let families = families();
    let (_folder, pipeline) = over(families.iter().map(|(text, _)| json!({ "text": text, "same": "a b c d e f" })));
    let default = NearDedup::default();
    let kept = |near: NearDedup| texts_of(&pipeline.clone().near_dedup(near));
    let base = kept(default.clone());
    assert_ne!(kept(NearDedup { threshold: 0.4, ..default.clone() }).len(), base.len());
    assert_ne!(kept(NearDedup { ngram: 1, ..default.clone() }).len(), base.len());
    assert_ne!(kept(NearDedup { permutations: 16, ..default.clone() }), base);
    assert_ne!(
        kept(NearDedup { seed: 9, permutations: 16, ..default.clone() }),
        kept(NearDedup { permutations: 16, ..default.clone() })
    );
    assert!(
        kept(NearDedup { bands: Some(1), ..default.clone() }).len() > base.len(),
        "one long band finds equal sets alone"
    );
    assert_eq!(kept(NearDedup { column: "same".to_owned(), ..default.clone() }), [families[0].0.clone()]);
    assert_eq!(base[0], families[0].0, "the first stays");

    let wrong = |near: NearDedup| says(&pipeline.clone().near_dedup(near));
    assert!(wrong(NearDedup { threshold: 0.0, ..default.clone() }).contains("`dedup.near.threshold` is 0"));
    assert!(wrong(NearDedup { ngram: 0, ..default.clone() }).contains("`dedup.near.ngram` is 0"));
    assert!(wrong(NearDedup { bands: Some(129), ..default.clone() }).contains("`dedup.near.bands` is 129"));
    assert!(wrong(NearDedup { permutations: 0, ..default.clone() }).contains("`dedup.near.permutations` is 0"));
    assert!(wrong(NearDedup { column: "x".to_owned(), ..default }).contains("there is no column `x`"));
    let both =
        Pipeline::from_toml("source = [{path = \"rows.jsonl\"}]\nstep = [{dedup = {on = [\"text\"], near = {}}}]", "");
    assert!(says(&both.unwrap()).contains("either `on` or `near`"));
}

#[test]
fn texts_without_words_stay_and_near_duplicates_are_counted() {
    let (_folder, pipeline) =
        over(["...", "!!!", "One two three.", "one TWO three", "other"].map(|text| json!({ "text": text })));
    let pipeline = pipeline.near_dedup(NearDedup::default());
    assert_eq!(texts_of(&pipeline), ["...", "!!!", "One two three.", "other"]);
    let report = prepare(&finish(pipeline)).unwrap();
    let account = account(&report, "step.0.dedup");
    assert_eq!((account.rows, account.reasons["similar to an earlier row"]), (4, 1));
}

#[test]
fn dedup_in_too_little_memory_is_an_error_and_in_enough_needs_no_room_for_rows() {
    // 6 MB of rows, whose hashes take less than 1 MB.
    let (_folder, pipeline) = over((0..6000).map(|i| json!({ "text": format!("{i} {}", "long ".repeat(200)) })));
    let exact = pipeline.clone().dedup(["text"]);
    let within = |pipeline: &Pipeline, memory_limit: usize| -> Result<usize, DataError> {
        let texts = pipeline
            .texts(&Resources { threads: 2, memory_limit: Some(memory_limit) })?
            .collect::<Result<Vec<_>, _>>()?;
        Ok(texts.len())
    };
    assert_eq!(within(&exact, 1 << 20).unwrap(), 6000);
    let error = within(&exact, 40_000).unwrap_err();
    assert!(matches!(&error, DataError::Memory { message } if message.contains("dedup")), "{error}");
    let near = pipeline.near_dedup(NearDedup { ngram: 1, threshold: 1.0, ..NearDedup::default() });
    let error = within(&near, 1000).unwrap_err();
    assert!(matches!(&error, DataError::Memory { .. }), "{error}");
}

#[test]
fn decontamination_finds_rows_that_hold_pieces_of_evaluation_sets() {
    let (folder, pipeline) = over([
        json!({ "text": words(0, 40), "n": 0 }),
        json!({ "text": format!("{} and then Word100, word101: {}", words(50, 60), words(102, 120)), "n": 1 }),
        json!({ "text": words(200, 211), "n": 2 }),
        json!({ "text": words(300, 305), "n": 3 }),
        json!({ "text": words(100, 108), "n": 4 }),
    ]);
    fs::create_dir(folder.path().join("eval")).unwrap();
    write_jsonl(
        &folder.path().join("eval/a.jsonl"),
        [
            json!({ "question": words(100, 130), "choices": [words(200, 210), "no"], "number": 1 }),
            json!({ "question": words(300, 305), "choices": [], "number": 2 }),
        ],
    );
    let against = || Decontaminate::new(["eval/*.jsonl"]);
    let numbers = |step: Decontaminate| {
        texts_of(&pipeline.clone().decontaminate(step).map([("text", "cast(n as text)")])).concat()
    };
    assert_eq!(numbers(against()), "034");
    assert_eq!(numbers(Decontaminate { min_ngram: 5, ..against() }), "04");
    assert_eq!(numbers(Decontaminate { min_ngram: 5, ngram: 8, ..against() }), "0");
    assert_eq!(numbers(Decontaminate { ngram: 30, ..against() }), "0134");
    assert_eq!(numbers(Decontaminate { fields: vec!["question".to_owned()], ..against() }), "0234");
    assert_eq!(numbers(Decontaminate { min_matches: 2, ..against() }), "0234");
    assert_eq!(numbers(Decontaminate { min_share: 0.7, ..against() }), "0134");
    assert_eq!(numbers(Decontaminate { min_share: 0.95, ..against() }), "01234");

    let report = pipeline.clone().decontaminate(Decontaminate { action: Found::Report, ..against() });
    assert_eq!(texts_of(&report).len(), 5);
    let shares = texts_of(&report.clone().map([("text", "cast(round(contamination, 2) as text)")]));
    assert_eq!(shares, ["0.0", "0.63", "0.91", "0.0", "0.0"]);
    let report = prepare(&finish(report)).unwrap();
    let steps = account(&report, "step.0.decontaminate");
    assert_eq!((steps.rows, steps.reasons["contaminated, kept"]), (5, 2));

    let columns = vec!["text".to_owned(), "other".to_owned()];
    let mapped = pipeline.clone().map([("other", format!("case when n = 0 then '{}' else '' end", words(105, 125)))]);
    assert_eq!(texts_of(&mapped.decontaminate(Decontaminate { columns, ..against() })).len(), 2);
    let wrong = |step: Decontaminate| says(&pipeline.clone().decontaminate(step));
    assert!(wrong(Decontaminate::new(["absent.jsonl"])).contains("absent.jsonl"));
    assert!(wrong(Decontaminate { min_ngram: 14, ..against() }).contains("`decontaminate.min_ngram` is 14"));
    assert!(wrong(Decontaminate { min_matches: 0, ..against() }).contains("`decontaminate.min_matches` is 0"));
    assert!(wrong(Decontaminate { min_share: 1.5, ..against() }).contains("`decontaminate.min_share` is 1.5"));
    assert!(wrong(Decontaminate { fields: vec!["answer".to_owned()], ..against() }).contains("no column `answer`"));
}

#[test]
fn another_evaluation_set_is_another_input() {
    let (folder, pipeline) = over(texts(30));
    let eval = folder.path().join("eval.jsonl");
    write_jsonl(&eval, [json!({ "q": words(0, 20) })]);
    let pipeline = finish(pipeline.decontaminate(Decontaminate::new(["eval.jsonl"])));
    assert!(!prepare(&pipeline).unwrap().already_prepared);
    assert!(prepare(&pipeline).unwrap().already_prepared);
    write_jsonl(&eval, [json!({ "q": words(1, 21) })]);
    assert!(matches!(prepare(&pipeline), Err(DataError::Occupied { .. })));
}
