//! Runs against the stand-in server of `tests/wandb`, which refuses every request that breaks the protocol.

mod server;

use std::time::Duration;

use dlm_wandb::{Object, Resume, Run, Settings, Table, WandbError};
use serde_json::{Value, json};
use server::{KEY, Server};

fn log_steps(run: &Run, steps: std::ops::Range<u64>) {
    for step in steps {
        run.log(step, [("train/loss", 4.0 / (step + 1) as f64)]).unwrap();
    }
}

fn table() -> Table {
    Table::new(["step", "generated"]).row([5.into(), "déjà vu \"q\"\n".into()]).row([5.into(), Value::Null])
}

#[test]
fn config_history_and_summary_arrive_and_the_run_is_finished() {
    let server = Server::start(&[]);
    let settings = Settings {
        name: Some("a name".into()),
        group: Some("a group".into()),
        notes: Some("a note".into()),
        tags: vec!["a".into(), "b".into()],
        ..server.settings()
    };
    let run = Run::start(settings, json!({"lr": 3e-4, "model": {"layers": 2}})).unwrap();
    log_steps(&run, 0..20);
    run.log(19, json!({"nested": {"a": 1}}).as_object().unwrap().clone()).unwrap();
    run.summary([("best/loss", 0.2)]).unwrap();
    let url = format!("{}/stub-entity/poems/runs/run1", server.url);
    assert_eq!((run.url(), run.name(), run.is_resumed()), (url.as_str(), "a name", false));
    let report = run.finish(0).unwrap();
    assert_eq!((report.rows_sent, report.rows_known, report.files_sent), (20, 0, 2));
    server.check(20, "0");
    let state = server.run();
    assert_eq!(state["config"]["model"], json!({"value": {"layers": 2}}));
    assert_eq!((&state["display_name"], &state["state"]), (&json!("a name"), &json!("finished")));
    assert_eq!(state["fields"], json!({"groupName": "a group", "notes": "a note", "tags": ["a", "b"]}));
    assert_eq!(state["history"][3]["train/loss"], 1);
    assert_eq!((&state["summary"]["best/loss"], &state["summary"]["nested"]["a"]), (&json!(0.2), &json!(1)));
    assert!(state["files"]["config.yaml"]["size"].as_u64() > Some(0));
}

#[test]
fn the_requests_come_in_the_official_clients_order() {
    let server = Server::start(&[]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..2);
    run.log_table(1, "samples", &table()).unwrap();
    run.finish(0).unwrap();
    let mut seen: Vec<_> = server
        .requests()
        .iter()
        .map(|request| request["op"].as_str().or(request["route"].as_str()).unwrap().to_owned())
        .collect();
    seen.dedup();
    assert_eq!(seen[..4], ["Viewer", "RunResumeStatus", "UpsertBucket", "ServerFeaturesQuery"]);
    assert_eq!(seen.last().unwrap(), "file_stream");
    assert!(seen.windows(2).any(|pair| pair == ["CreateRunFiles", "upload"]), "{seen:?}");
    for request in server.requests().iter().filter(|request| request["route"] == "upload") {
        assert_eq!((&request["auth"], request["headers"].get("transfer-encoding")), (&json!("none"), None));
    }
}

#[test]
fn values_that_are_not_finite_arrive_as_bare_words() {
    let server = Server::start(&["--gzip", "0"]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    run.log(0, [("a", f64::NAN), ("b", f64::INFINITY), ("c", f64::NEG_INFINITY)]).unwrap();
    run.finish(0).unwrap();
    server.check(1, "0");
    let deliveries = server.deliveries();
    let lines: Vec<_> = deliveries
        .iter()
        .filter_map(|request| request["body"]["files"]["wandb-history.jsonl"]["content"][0].as_str())
        .collect();
    assert!(lines[0].ends_with(r#""a":NaN,"b":Infinity,"c":-Infinity}"#), "{lines:?}");
}

#[test]
fn a_table_can_be_downloaded_by_its_reference_in_the_row() {
    let server = Server::start(&[]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..5);
    run.log_table(5, "eval/samples", &table()).unwrap();
    log_steps(&run, 5..7);
    assert_eq!(run.finish(0).unwrap().files_sent, 3);
    server.check(7, "0"); // the upload's size and hash are those of the reference
    let state = server.run();
    let reference = &state["history"][5]["eval/samples"];
    assert_eq!((&reference["nrows"], &reference["ncols"]), (&json!(2), &json!(2)));
    let path = reference["path"].as_str().unwrap();
    assert!(path.starts_with("media/table/eval/samples_5_"), "{path}");
    assert_eq!(state["files"][path]["table"], json!({"ncols": 2, "nrows": 2}));
}

#[test]
fn uploads_carry_the_headers_that_the_server_signed() {
    let server = Server::start(&["--upload-header", "x-amz-meta:a:b"]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    run.log_table(0, "samples", &table()).unwrap();
    run.finish(0).unwrap();
    server.check(1, "0");
}

#[test]
fn too_many_requests_are_repeated_after_the_wait_that_the_server_names() {
    let server = Server::start(&["--fault", r#"{"match":"file_stream","status":429,"retry_after":0.3,"count":3}"#]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..50);
    run.finish(0).unwrap();
    server.check(50, "0");
    let deliveries = server.deliveries();
    assert_eq!(deliveries.iter().filter(|request| request["status"] == 429).count(), 3);
    for pair in deliveries.windows(2).take(3) {
        assert_eq!(pair[0]["body"], pair[1]["body"], "a repetition is word for word");
        let waited_s = pair[1]["t"].as_f64().unwrap() - pair[0]["t_done"].as_f64().unwrap();
        assert!(waited_s >= 0.29, "came back after {waited_s} s");
    }
}

#[test]
fn lost_answers_lose_and_double_no_row() {
    let faults: Vec<_> = ["before", "after", "partial"]
        .into_iter()
        .flat_map(|drop| {
            ["--fault".to_owned(), format!(r#"{{"match":"*","drop":"{drop}","probability":0.3,"count":8}}"#)]
        })
        .collect();
    let server = Server::start(&faults.iter().map(String::as_str).collect::<Vec<_>>());
    let run = Run::start(server.settings(), json!({})).unwrap();
    for step in 0..40 {
        log_steps(&run, step..step + 1);
        if step % 10 == 0 {
            run.log_table(step, "samples", &table()).unwrap();
            server.wait_until("the rows before arrive", |state| {
                state["history"].as_array().map_or(0, Vec::len) as u64 >= step
            });
        }
    }
    run.finish(0).unwrap();
    server.check(40, "0");
}

#[test]
fn an_outage_in_mid_run_loses_nothing() {
    let server = Server::start(&[]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..5);
    server.wait_until("the first rows arrive", |state| state["history"].as_array().unwrap().len() == 4);
    server.take_down(1);
    log_steps(&run, 5..10);
    run.finish(0).unwrap();
    server.check(10, "0");
}

#[test]
fn an_answer_that_is_not_json_counts_as_delivered() {
    let server = Server::start(&["--fault", r#"{"match":"file_stream","reply":"<html>","count":-1}"#]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..3);
    run.finish(0).unwrap();
    server.check(3, "0");
}

#[test]
fn a_failing_start_is_repeated() {
    let server = Server::start(&["--fault", r#"{"match":"graphql","op":"UpsertBucket","status":500,"count":2}"#]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..1);
    run.finish(0).unwrap();
    server.check(1, "0");
}

#[test]
fn an_upload_that_fails_at_first_delays_no_row_and_arrives() {
    let server = Server::start(&[
        "--fault",
        r#"{"match":"upload","status":403,"count":1}"#,
        "--fault",
        r#"{"match":"upload","status":503,"count":-1}"#,
    ]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    run.log_table(0, "samples", &table()).unwrap();
    log_steps(&run, 1..4);
    let arrived = |state: &Value| state["history"].as_array().is_some_and(|rows| rows.len() == 3);
    let state = server.wait_until("the rows arrive", arrived);
    assert_eq!(state["files"], json!({}));
    server.control("faults", "[]");
    run.finish(0).unwrap();
    server.check(4, "0");
    let asked = server.requests().iter().filter(|request| request["op"] == "CreateRunFiles").count();
    assert!(asked >= 2, "an address that was refused is asked for again");
}

#[test]
fn an_upload_that_is_refused_for_good_is_counted_and_the_run_still_completes() {
    let server = Server::start(&["--fault", r#"{"match":"upload","status":400,"count":1}"#]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    run.log_table(0, "samples", &table()).unwrap();
    let error = run.finish(0).unwrap_err();
    assert!(matches!(error, WandbError::Undelivered { rows: 0, files: 1, .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "run `run1` is incomplete on the server, 0 rows and 1 files are missing: the upload was answered 400"
    );
    assert_eq!(server.run()["state"], "finished");
}

#[test]
fn a_refused_key_is_an_error_at_once_and_is_not_repeated() {
    let server = Server::start(&["--reject-auth"]);
    let error = Run::start(server.settings(), json!({})).unwrap_err();
    assert!(matches!(&error, WandbError::KeyRefused { host } if server.url.ends_with(host)), "{error:?}");
    assert!(error.help().unwrap().contains("WANDB_API_KEY"));
    assert!(!format!("{error} {error:?}").contains(KEY));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_server_that_is_not_there_is_an_error_when_the_start_is_out_of_time() {
    let server = Server::start(&[]);
    let settings = Settings { start_timeout: Duration::from_millis(100), ..server.settings() };
    drop(server);
    let error = Run::start(settings, json!({})).unwrap_err();
    assert!(matches!(error, WandbError::Unreachable { .. }), "{error:?}");
}

#[test]
fn what_graphql_says_of_an_error_is_passed_on() {
    let server =
        Server::start(&["--fault", r#"{"match":"graphql","op":"UpsertBucket","graphql_error":"project not found"}"#]);
    let error = Run::start(server.settings(), json!({})).unwrap_err();
    assert_eq!(error.to_string(), "`UpsertBucket` failed: the server says: project not found");
}

#[test]
fn a_dropped_run_delivers_its_rows_and_is_never_called_complete() {
    let server = Server::start(&[]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..10);
    drop(run);
    server.check(10, "none");
    assert_eq!(server.run()["state"], "running");
}

#[test]
fn an_exit_code_other_than_0_is_a_failed_run() {
    let server = Server::start(&[]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..3);
    run.finish(7).unwrap();
    server.check(3, "7");
    assert_eq!((&server.run()["state"], &server.run()["exitcode"]), (&json!("failed"), &json!(7)));
}

#[test]
fn a_resumed_run_continues_lines_steps_summary_and_config() {
    let server = Server::start(&[]);
    let run = Run::start(server.settings(), json!({"lr": 1, "old": true})).unwrap();
    log_steps(&run, 0..10);
    run.summary([("best", 0.5)]).unwrap();
    drop(run);
    let settings = Settings { resume: Resume::Allow, ..server.settings() };
    let run = Run::start(settings, json!({"lr": 2})).unwrap();
    assert_eq!((run.next_step(), run.is_resumed()), (10, true));
    // The checkpoint was older than the last delivered row: the steps in between come again.
    log_steps(&run, 8..15);
    let report = run.finish(0).unwrap();
    assert_eq!((report.rows_sent, report.rows_known), (5, 2));
    server.check(15, "0");
    let state = server.run();
    assert_eq!(state["summary"]["best"], 0.5);
    assert_eq!((&state["config"]["lr"]["value"], &state["config"]["old"]["value"]), (&json!(2), &json!(true)));
    let runtimes: Vec<_> =
        state["history"].as_array().unwrap().iter().map(|row| row["_runtime"].as_f64().unwrap()).collect();
    assert!(runtimes.is_sorted(), "{runtimes:?}");
}

#[test]
fn resuming_goes_by_what_exists() {
    let server = Server::start(&[]);
    let start = |resume| Run::start(Settings { resume, ..server.settings() }, json!({}));
    assert!(matches!(start(Resume::Must).unwrap_err(), WandbError::NoSuchRun { .. }));
    start(Resume::Allow).unwrap().finish(0).unwrap();
    assert!(matches!(start(Resume::Never).unwrap_err(), WandbError::RunExists { .. }));
    assert!(start(Resume::Must).unwrap().is_resumed());
}

#[test]
fn stop_pressed_on_the_page_is_seen() {
    let server = Server::start(&[]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    server.control("stopped", "true");
    assert!(!run.stop_requested());
    log_steps(&run, 0..2);
    server.wait_until("two deliveries", |state| state["file_stream_requests"].as_u64() >= Some(1));
    run.log(2, Object::new()).unwrap();
    server.wait_until("one more delivery, so that the answer of the first was read", |state| {
        state["file_stream_requests"].as_u64() >= Some(2)
    });
    assert!(run.stop_requested());
    run.finish(0).unwrap();
}

#[test]
fn a_silent_run_gives_signs_of_life() {
    let server = Server::start(&[]);
    let mut settings = server.settings();
    settings.pace.heartbeat_interval = Duration::from_millis(20);
    let run = Run::start(settings, json!({})).unwrap();
    server.wait_until("three heartbeats", |state| state["file_stream_requests"].as_u64() >= Some(3));
    assert!(server.deliveries()[..3].iter().all(|request| request["body"] == json!({})));
    run.finish(0).unwrap();
    server.check(0, "0");
}

#[test]
fn bodies_are_packed_exactly_when_the_server_announces_it() {
    for (announced, argument) in [(true, "1"), (false, "0")] {
        let server = Server::start(&["--gzip", argument]);
        let run = Run::start(server.settings(), json!({})).unwrap();
        log_steps(&run, 0..3);
        run.finish(0).unwrap();
        server.check(3, "0");
        let packed = |request: &Value| request["gzip"] == json!(true);
        assert!(server.deliveries().iter().all(|request| packed(request) == announced));
        assert!(
            server.requests().iter().filter(|request| request["route"] == "graphql").all(|request| !packed(request))
        );
    }
}

#[test]
fn a_rate_limit_spaces_the_requests() {
    let server = Server::start(&["--rate-limit", "5/1"]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..2);
    server.wait_until("a delivery", |state| state["file_stream_requests"].as_u64() >= Some(1));
    log_steps(&run, 2..4);
    run.finish(0).unwrap();
    server.check(4, "0");
    for pair in server.deliveries().windows(2) {
        assert!(pair[1]["t"].as_f64().unwrap() - pair[0]["t_done"].as_f64().unwrap() >= 0.19, "{pair:#?}");
    }
}

#[test]
fn a_server_that_stays_away_is_an_error_that_counts_what_is_missing() {
    let server = Server::start(&[]);
    let settings = Settings { finish_timeout: Duration::from_millis(500), ..server.settings() };
    let run = Run::start(settings, json!({})).unwrap();
    log_steps(&run, 0..4);
    server.wait_until("the first rows arrive", |state| state["history"].as_array().unwrap().len() == 3);
    drop(server);
    log_steps(&run, 4..6);
    run.log_table(6, "samples", &table()).unwrap();
    let error = run.finish(0).unwrap_err();
    let WandbError::Undelivered { rows, files, .. } = &error else { panic!("{error:?}") };
    assert_eq!((*rows, *files), (4, 3), "{error}"); // steps 3 to 6; table, summary and config
}

#[test]
fn a_run_that_the_server_no_longer_knows_is_given_up_once_and_counted() {
    let server = Server::start(&["--fault", r#"{"match":"file_stream","status":404,"count":-1}"#]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..3);
    let error = run.finish(0).unwrap_err();
    assert!(matches!(error, WandbError::Undelivered { rows: 3, files: 0, .. }), "{error:?}");
    assert!(error.to_string().contains("404"), "{error}");
    assert_eq!(server.deliveries().len(), 1);
}

#[test]
fn a_wait_longer_than_the_time_left_ends_the_finish_early() {
    let server = Server::start(&["--fault", r#"{"match":"file_stream","status":503,"retry_after":3600,"count":-1}"#]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    log_steps(&run, 0..3);
    let error = run.finish(0).unwrap_err();
    assert!(matches!(error, WandbError::Undelivered { rows: 3, .. }), "{error:?}");
    assert_eq!(server.deliveries().len(), 1, "no request came before the hour that the server asked for");
}

#[test]
fn many_rows_from_several_threads_arrive_in_order() {
    let server = Server::start(&[]);
    let run = Run::start(server.settings(), json!({})).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| log_steps(&run, 0..2000));
        scope.spawn(|| (0..200).for_each(|value| run.summary([("best", f64::from(value))]).unwrap()));
    });
    assert_eq!(run.finish(0).unwrap().rows_sent, 2000);
    server.check(2000, "0");
    assert_eq!(server.run()["summary"]["best"], 199);
}

#[test]
fn a_key_found_in_the_netrc_file_opens_the_server() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let netrc = folder.path().join("netrc");
    let host = server.url.strip_prefix("http://").unwrap();
    std::fs::write(&netrc, format!("machine {host}\n  login user\n  password {KEY}\n")).unwrap();
    let settings = Settings { api_key: None, netrc: Some(netrc), ..server.settings() };
    Run::start(settings, json!({})).unwrap().finish(0).unwrap();
    server.check(0, "0");
}
