//! What is taken, kept, skipped and refused.

use super::*;

fn journal(next_step: u64, history_lines: u64) -> Journal {
    Journal::new(&Started {
        entity: "e".into(),
        project: "p".into(),
        id: "r".into(),
        name: "r".into(),
        resumed: next_step > 0,
        history_lines,
        next_step,
        runtime_s: 10.0,
        summary: Object::new(),
        config: Object::new(),
        gzip: false,
    })
}

fn loss(value: f64) -> Object {
    Object::from([("loss", value)])
}

fn finish(journal: &mut Journal, exit_code: Option<i32>) {
    journal.finish(End { exit_code, files_until: Instant::now(), deadline: Instant::now() });
}

fn body(delivery: &Delivery) -> serde_json::Value {
    serde_json::from_str(&delivery.body).unwrap()
}

#[test]
fn a_row_waits_until_its_step_is_over_and_joins_what_came_meanwhile() {
    let mut journal = journal(0, 0);
    journal.log(3, loss(1.0)).unwrap();
    journal.log(3, Object::from([("lr", 0.1)])).unwrap();
    assert_eq!(journal.take().unwrap().rows, 0);
    journal.log(4, loss(2.0)).unwrap();
    let delivery = journal.take().unwrap();
    let chunk = &body(&delivery)["files"]["wandb-history.jsonl"];
    assert_eq!((delivery.rows, &chunk["offset"]), (1, &json!(0)));
    let row = chunk["content"][0].as_str().unwrap();
    assert!(row.contains(r#""_step":3,"#) && row.ends_with(r#""loss":1,"lr":0.1}"#), "{row}");
}

#[test]
fn each_line_is_taken_once_and_offsets_follow_each_other() {
    let mut journal = journal(0, 0);
    let mut offsets = Vec::new();
    for step in 0..6 {
        journal.log(step, loss(0.5)).unwrap();
        if step % 2 == 1 {
            let delivery = journal.take().unwrap();
            offsets.push((body(&delivery)["files"]["wandb-history.jsonl"]["offset"].as_u64().unwrap(), delivery.rows));
        }
    }
    assert_eq!(offsets, [(0, 1), (1, 2), (3, 2)]);
}

#[test]
fn a_resumed_run_skips_the_steps_it_has_and_counts_them() {
    let mut journal = journal(5, 9);
    assert!(!journal.log(4, loss(1.0)).unwrap());
    assert!(!journal.log(4, Object::from([("lr", 1)])).unwrap());
    assert!(journal.log(5, loss(2.0)).unwrap());
    finish(&mut journal, None);
    let delivery = journal.take().unwrap();
    assert_eq!(body(&delivery)["files"]["wandb-history.jsonl"]["offset"], 9);
    assert_eq!((journal.counts.rows_known, journal.counts.rows), (1, 1));
}

#[test]
fn a_step_that_goes_back_and_a_reserved_name_are_refused_and_change_nothing() {
    let mut journal = journal(0, 0);
    journal.log(2, loss(1.0)).unwrap();
    let error = journal.log(1, loss(9.0)).unwrap_err();
    assert_eq!(error.to_string(), "step 1 was logged after step 2");
    assert!(matches!(journal.log(3, Object::from([("_step", 1)])), Err(WandbError::ReservedName { .. })));
    finish(&mut journal, Some(0));
    journal.files_failed();
    let delivery = journal.take().unwrap();
    assert_eq!(delivery.rows, 1);
    assert!(delivery.body.contains(r#"\"loss\":1"#) && !delivery.body.contains(r#"\"loss\":9"#));
}

#[test]
fn a_row_that_is_too_long_is_refused_and_the_rest_of_its_step_kept() {
    let mut journal = journal(0, 0);
    journal.log(0, loss(1.0)).unwrap();
    let error = journal.log(0, Object::from([("text", "x".repeat(LONGEST_LINE))])).unwrap_err();
    assert!(matches!(error, WandbError::TooLong { size_bytes, .. } if size_bytes > LONGEST_LINE));
    finish(&mut journal, None);
    assert_eq!(journal.take().unwrap().rows, 1);
}

#[test]
fn more_than_a_request_holds_goes_in_several_and_the_last_alone_completes() {
    let mut journal = journal(0, 0);
    for step in 0..3 {
        journal.log(step, Object::from([("text", "\"".repeat(2_000_000))])).unwrap();
    }
    finish(&mut journal, Some(3));
    journal.files_failed();
    let deliveries: Vec<_> = std::iter::from_fn(|| journal.take()).collect();
    let seen: Vec<_> = deliveries.iter().map(|delivery| (delivery.rows, delivery.is_last)).collect();
    assert_eq!(seen, [(1, false), (1, false), (1, false), (0, true)]);
    assert!(deliveries.iter().all(|delivery| delivery.body.len() <= LONGEST_REQUEST));
    assert_eq!(body(&deliveries[3])["exitcode"], 3);
}

#[test]
fn a_closed_journal_keeps_no_rows_but_counts_them() {
    let mut journal = journal(0, 0);
    journal.log(0, loss(1.0)).unwrap();
    journal.close("404".into());
    journal.log(1, loss(1.0)).unwrap();
    finish(&mut journal, Some(0));
    assert!(journal.take().is_none());
    assert_eq!((journal.counts.rows, journal.counts.rows_confirmed), (2, 0));
}

#[test]
fn the_summary_holds_the_last_values_and_those_set_by_hand() {
    let mut journal = journal(0, 0);
    journal.log(0, loss(f64::NAN).with("a", Object::from([("x", 1)]))).unwrap();
    journal.summarize(Object::from([("best", 0.5)])).unwrap();
    journal.log(1, Object::from([("a", Object::from([("y", 2)]))])).unwrap();
    let delivery = journal.take().unwrap();
    let line = body(&delivery)["files"]["wandb-summary.json"]["content"][0].as_str().unwrap().to_owned();
    let summary = Value::from_json(&line).unwrap().into_object().unwrap();
    assert_eq!(summary.get("_step"), Some(&Value::Integer(1)));
    assert!(line.ends_with(r#""_wandb":{"runtime":10},"a":{"x":1,"y":2},"best":0.5,"loss":NaN}"#), "{line}");
}
