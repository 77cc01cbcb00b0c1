//! A preparation that is stopped goes on behind the shards that it had finished, and the bytes are those of an unbroken one.

mod support;

use dlm_data::{
    Existing, Overlong, Pack, PackStrategy, Pipeline, PrepareOptions, PrepareReport, Tokenize, prepare as prepare_async,
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path, time::Duration};
use support::{options, texts, tokenizer, tree, write_jsonl};

const ROWS: usize = 4000;

/// Rows of which some are equal.
fn source(folder: &Path) -> Pipeline {
    write_jsonl(&folder.join("rows.jsonl"), texts(ROWS).chain(texts(50)));
    Pipeline::new().relative_to(folder).source("rows.jsonl")
}

#[expect(clippy::needless_pass_by_value, reason = "options are written where they are given")]
fn packed(pipeline: Pipeline, pack: Pack) -> Pipeline {
    let looks_ahead = [PackStrategy::FirstFitDecreasing, PackStrategy::FirstFit].contains(&pack.strategy);
    let window = if looks_ahead { 7 } else { pack.window };
    let pipeline = pipeline.pack(Pack { window, ..pack }).output("prepared");
    pipeline.with_override("output.shard_tokens", "3000").unwrap()
}

fn tokenize() -> Tokenize {
    Tokenize::new(tokenizer())
}

fn into(folder: &Path, name: &str, threads: usize) -> PrepareOptions {
    PrepareOptions { output: Some(folder.join(name)), ..options(threads) }
}

/// The shards that a stopped preparation has finished, and the numbers that the file system gave them.
fn finished(output: &Path) -> BTreeMap<String, u64> {
    let aside = output.join(".preparing");
    let Ok(journal) = fs::read(aside.join("journal.json")) else { return BTreeMap::new() };
    let journal: Value = serde_json::from_slice(&journal).unwrap();
    let shards = ["train", "validation"].into_iter().flat_map(|side| journal[side].as_array().unwrap().clone());
    let paths = shards.map(|shard| shard["path"].as_str().unwrap().to_owned());
    paths.map(|path| (path.clone(), fs::metadata(aside.join(path)).unwrap().ino())).collect()
}

/// Runs a preparation until it has finished so many shards, and stops it there; none when it was done before.
fn stopped_after(pipeline: &Pipeline, options: &PrepareOptions, shards: usize) -> Option<BTreeMap<String, u64>> {
    let output = options.output.clone().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let was_stopped = runtime.block_on(async {
        let watch = async {
            while finished(&output).len() < shards {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            done = prepare_async(pipeline, options, |_| ()) => done.map(|_| false),
            () = watch => Ok(true),
        }
    });
    drop(runtime); // waits for the threads
    was_stopped.unwrap().then(|| finished(&output))
}

/// As [`stopped_after`], begun anew when it was done before it was stopped.
fn stop_after(pipeline: &Pipeline, options: &PrepareOptions, shards: usize) -> BTreeMap<String, u64> {
    let output = options.output.clone().unwrap();
    for _ in 0..50 {
        if let Some(finished) = stopped_after(pipeline, options, shards) {
            return finished;
        }
        fs::remove_dir_all(&output).unwrap();
    }
    panic!("it was never stopped in time");
}

fn inodes(report: &PrepareReport) -> BTreeMap<String, u64> {
    let sides = [Some(&report.manifest.train), report.manifest.validation.as_ref()];
    let shards = sides.into_iter().flatten().flat_map(|side| &side.shards);
    shards.map(|shard| (shard.path.clone(), fs::metadata(report.output.join(&shard.path)).unwrap().ino())).collect()
}

#[track_caller]
fn goes_on(pipeline: &Pipeline, folder: &Path) {
    let whole = pipeline.prepare(&into(folder, "whole", 2), |_| ()).unwrap();
    assert_eq!(whole.resumed_shards, 0);
    let shards = inodes(&whole).len();
    assert!(shards > 12, "{shards} shards are too few to stop between");
    let bytes = tree(&whole.output);
    for threads in [1, 2] {
        let broken = into(folder, &format!("broken-{threads}"), threads);
        let first = stop_after(pipeline, &broken, 2);
        // On a busy machine the second stop may come too late: everything is made then.
        let second = stopped_after(pipeline, &broken, first.len() + 2);
        let is_done = second.is_none();
        let second = second.unwrap_or_else(|| first.clone());
        assert!(first.iter().all(|shard| second.get(shard.0) == Some(shard.1)), "finished shards were made again");
        let report = pipeline.prepare(&broken, |_| ()).unwrap();
        assert_eq!(report.already_prepared, is_done);
        assert!(is_done || report.resumed_shards == second.len());
        let made = inodes(&report);
        assert!(second.iter().all(|shard| made.get(shard.0) == Some(shard.1)), "finished shards were made again");
        assert!(tree(&report.output) == bytes, "the bytes differ");
        assert_eq!(report.manifest, whole.manifest);
    }
}

#[test]
fn packing_in_windows_with_both_sides_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = source(folder.path()).filter("number % 5 <> 1").split(0.2).tokenize(tokenize());
    goes_on(&packed(pipeline, Pack::new(64)), folder.path());
}

#[test]
fn a_shuffled_pipeline_without_doubles_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = source(folder.path()).dedup(["text"]).shuffle(3).tokenize(tokenize());
    goes_on(&packed(pipeline, Pack::new(64)), folder.path());
}

#[test]
fn every_packing_strategy_goes_on() {
    for strategy in [PackStrategy::FirstFit, PackStrategy::Sequential, PackStrategy::Concatenate, PackStrategy::Alone] {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = source(folder.path()).split(0.3).tokenize(tokenize());
        goes_on(&packed(pipeline, Pack { strategy, ..Pack::new(48) }), folder.path());
    }
}

#[test]
fn conditions_and_drops_behind_the_tokens_are_accounted_for_once() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = source(folder.path()).tokenize(tokenize()).filter("array_length(input_ids) % 4 <> 0").split(0.2);
    goes_on(&packed(pipeline, Pack { overlong: Overlong::Drop, ..Pack::new(40) }), folder.path());
}

#[test]
fn rows_that_are_left_out_and_what_is_said_of_messages_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let row = |i: usize| {
        let mut answer =
            serde_json::json!({ "role": "assistant", "content": format!("{i} {}", "word ".repeat(i % 23)) });
        if i.is_multiple_of(7) {
            answer["note"] = "n".into();
        }
        let role = if i == 3 { "gardener" } else { "user" };
        // The template refuses an empty question.
        let question = if i.is_multiple_of(50) { "" } else { "q" };
        let messages = serde_json::json!([{ "role": role, "content": question }, answer]);
        serde_json::json!({ "messages": messages })
    };
    write_jsonl(&folder.path().join("rows.jsonl"), (0..ROWS).map(row));
    let template = "{% if not messages[0].content %}{{ raise_exception('empty') }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}";
    let roles_to_train = ["assistant", "gardener", "nobody"].map(str::to_owned).to_vec();
    let chat = dlm_data::Messages { template: template.to_owned(), roles_to_train, ..dlm_data::Messages::default() };
    let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").on_error(dlm_data::OnError::Skip);
    let pipeline = packed(pipeline.chat(dlm_data::Chat::Messages(chat)).tokenize(tokenize()), Pack::new(64));
    goes_on(&pipeline, folder.path());
    let manifest = dlm_data::Manifest::read(&folder.path().join("whole")).unwrap();
    assert_eq!(manifest.sources[0].quarantined as usize, ROWS / 50);
    let kept = (0..ROWS).filter(|i| i.is_multiple_of(7) && !i.is_multiple_of(50)).count();
    assert_eq!(manifest.account.ignored_fields["note"] as usize, kept);
    assert_eq!(manifest.account.unseen, ["role `nobody` of `roles_to_train`"]);
}

#[test]
fn a_shuffle_behind_the_tokens_goes_on_with_packing() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = source(folder.path()).tokenize(tokenize()).shuffle(1);
    goes_on(&packed(pipeline, Pack::new(64)), folder.path());
}

#[test]
fn what_another_pipeline_or_other_input_left_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = packed(source(folder.path()).tokenize(tokenize()), Pack::new(64));
    let options = into(folder.path(), "broken", 2);
    stop_after(&pipeline, &options, 3);
    let other = pipeline.clone().with_override("pack.window", "8").unwrap();
    let report = other.prepare(&options, |_| ()).unwrap();
    assert_eq!(report.resumed_shards, 0);
    let whole = other.prepare(&into(folder.path(), "whole", 2), |_| ()).unwrap();
    assert!(tree(&report.output) == tree(&whole.output));

    let options = into(folder.path(), "broken-again", 2);
    stop_after(&pipeline, &options, 3);
    write_jsonl(&folder.path().join("rows.jsonl"), texts(ROWS));
    assert_eq!(pipeline.prepare(&options, |_| ()).unwrap().resumed_shards, 0);
}

#[test]
fn a_finished_shard_that_was_damaged_since_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = packed(source(folder.path()).tokenize(tokenize()), Pack::new(64));
    let whole = pipeline.prepare(&into(folder.path(), "whole", 2), |_| ()).unwrap();
    let options = into(folder.path(), "broken", 2);
    stop_after(&pipeline, &options, 3);
    let shard = options.output.clone().unwrap().join(".preparing/train/00001.parquet");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[100] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let report = pipeline.prepare(&options, |_| ()).unwrap();
    assert_eq!(report.resumed_shards, 0);
    assert!(tree(&report.output) == tree(&whole.output));
}

#[test]
fn a_preparation_killed_while_it_puts_things_in_place_is_completed_without_work() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = packed(source(folder.path()).split(0.2).tokenize(tokenize()), Pack::new(64));
    let whole = pipeline.prepare(&into(folder.path(), "prepared", 2), |_| ()).unwrap();
    let (bytes, before) = (tree(&whole.output), inodes(&whole));
    let aside = whole.output.join(".preparing");
    fs::create_dir(&aside).unwrap();
    fs::rename(whole.output.join("manifest.json"), aside.join("ready.json")).unwrap();
    for name in ["validation", "tokenizer"] {
        fs::rename(whole.output.join(name), aside.join(name)).unwrap();
    }
    let report = pipeline.prepare(&into(folder.path(), "prepared", 2), |_| ()).unwrap();
    assert_eq!(report.resumed_shards, before.len());
    assert!(!report.already_prepared);
    assert_eq!(inodes(&report), before);
    assert!(tree(&report.output) == bytes);

    // And one that was killed behind the last step.
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("lock"), "").unwrap();
    assert!(pipeline.prepare(&into(folder.path(), "prepared", 2), |_| ()).unwrap().already_prepared);
    assert!(tree(&report.output) == bytes);
}

#[test]
fn old_data_stays_until_the_preparation_that_replaces_it_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = packed(source(folder.path()).tokenize(tokenize()), Pack::new(64));
    let other = pipeline.clone().with_override("pack.window", "8").unwrap();
    let options = PrepareOptions { existing: Existing::Overwrite, ..into(folder.path(), "prepared", 2) };
    let (old, stopped) = std::iter::repeat_with(|| {
        let old = other.prepare(&options, |_| ()).unwrap();
        (old, stopped_after(&pipeline, &options, 3))
    })
    .take(50)
    .find_map(|(old, stopped)| Some((old, stopped?)))
    .expect("one of fifty is stopped in time");
    assert_eq!(dlm_data::Manifest::read(&old.output).unwrap(), old.manifest);
    dlm_data::PreparedData::open(&old.output, dlm_data::Split::Train).unwrap().verify().unwrap();
    let report = pipeline.prepare(&options, |_| ()).unwrap();
    assert_eq!(report.resumed_shards, stopped.len());
    assert_ne!(report.manifest, old.manifest);
}

#[test]
fn a_second_preparation_of_the_same_folder_is_refused_while_the_first_runs() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = packed(source(folder.path()).tokenize(tokenize()), Pack::new(64));
    let options = into(folder.path(), "prepared", 2);
    let mut refused = None;
    let report = pipeline.prepare(&options, |_| {
        let second = || pipeline.prepare(&options, |_| ()).map(drop);
        refused.get_or_insert_with(|| std::thread::scope(|scope| scope.spawn(second).join().unwrap()));
    });
    assert!(report.is_ok());
    assert!(matches!(refused, Some(Err(dlm_data::DataError::Busy { .. }))), "{refused:?}");
}
