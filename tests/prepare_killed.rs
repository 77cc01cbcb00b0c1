//! A preparation that is killed at any moment is continued by calling it again, with the bytes of an unbroken one.

use dlm_tests::{Finished, Scratch};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");
const ROWS: usize = 12_000;

fn scratch() -> Scratch {
    let scratch = Scratch::new(DLM);
    let row = |i: usize| json!({ "text": format!("Row {i} says: {}", "so it goes, and so on; ".repeat(i % 11)) });
    scratch.write("rows.jsonl", (0..ROWS).map(|i| format!("{}\n", row(i))).collect::<String>());
    scratch.write(
        "pipeline.toml",
        format!(
            "[[source]]\npath = \"rows.jsonl\"\n[[step]]\nsplit = {{ validation = 0.1 }}\n[[step]]\ntokenize = {{ tokenizer = {:?} }}\n\
             [[step]]\npack = {{ sequence_len = 64, window = 16 }}\n[output]\npath = \"data\"\nshard_tokens = 20000\n",
            dlm_golden::model("llama").canonicalize().unwrap()
        ),
    );
    scratch
}

fn arguments<'a>(output: &'a str, threads: &'a str) -> [&'a str; 7] {
    ["data", "prepare", "pipeline.toml", "--output", output, "--threads", threads]
}

fn start(scratch: &Scratch, output: &str, threads: &str) -> Child {
    let mut command = scratch.command(&arguments(output, threads));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Every file below a folder, with its content.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().display().to_string(), fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Shards that the journal of a killed preparation names.
fn finished_shards(scratch: &Scratch, output: &str) -> usize {
    let Ok(journal) = fs::read(scratch.path(output).join(".preparing/journal.json")) else { return 0 };
    let journal: Value = serde_json::from_slice(&journal).expect("a journal is whole or absent");
    ["train", "validation"].map(|side| journal[side].as_array().unwrap().len()).iter().sum()
}

/// Kills a preparation once `is_time` says so; false when it was done before that.
fn kill_when(child: &mut Child, mut is_time: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_time() {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return false;
        }
        assert!(Instant::now() < deadline, "the moment did not come within two minutes");
        std::thread::sleep(Duration::from_millis(1)); // polls a condition; the deadline above is its end
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    true
}

#[test]
fn killed_at_any_moment_it_is_continued_with_the_same_bytes() {
    let scratch = scratch();
    let started = Instant::now();
    scratch.succeed(&arguments("whole", "2"));
    let unbroken = started.elapsed();
    let whole = tree(&scratch.path("whole"));
    assert!(whole.len() > 12, "{:?}", whole.keys());

    // More moments: DLM_TEST_KILLS=20.
    let kills = std::env::var("DLM_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(3u32);
    for threads in ["1", "2"] {
        let output = format!("broken-{threads}");
        // Once at a moment at which something is finished; then at moments that no two machines share.
        let mut child = start(&scratch, &output, threads);
        assert!(kill_when(&mut child, || finished_shards(&scratch, &output) >= 2), "it was done before it was killed");
        let mut finished = finished_shards(&scratch, &output);
        for kill in 0..kills {
            let started = Instant::now();
            let after = unbroken.mul_f64(f64::from((kill * 7 + 3) % 10) / 10.0);
            let mut child = start(&scratch, &output, threads);
            if !kill_when(&mut child, || started.elapsed() >= after) {
                // It was done: another is begun.
                assert!(tree(&scratch.path(&output)) == whole, "the bytes differ");
                fs::remove_dir_all(scratch.path(&output)).unwrap();
                finished = 0;
                continue;
            }
            let now = finished_shards(&scratch, &output);
            let is_delivered = !scratch.path(&output).join(".preparing/journal.json").exists();
            assert!(now >= finished || is_delivered, "{finished} shards had been finished, and {now} are");
            finished = now;
        }
        let is_all_made = scratch.path(&output).join(".preparing/ready.json").exists();
        let ended = scratch.run(&arguments(&output, threads));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let says = format!("continuing behind {finished} shard");
        assert!(finished == 0 || is_all_made || ended.stderr.contains(&says), "`{says}` is not in {}", ended.stderr);
        assert!(tree(&scratch.path(&output)) == whole, "the bytes differ");
    }
}

#[test]
fn where_there_is_no_room_the_file_is_named_and_finished_shards_are_kept() {
    let scratch = scratch();
    // The second run may write no file as large as a shard, as on a disk that is full.
    let mut child = start(&scratch, "data", "2");
    assert!(kill_when(&mut child, || finished_shards(&scratch, "data") >= 2), "it was done before it was killed");
    let finished = finished_shards(&scratch, "data");
    let words: Vec<String> = arguments("data", "2").iter().map(|word| format!("'{word}'")).collect();
    let script = format!("trap '' XFSZ; ulimit -f 8; exec '{DLM}' {}", words.join(" "));
    let output = Command::new("bash").args(["-c", &script]).current_dir(scratch.path("")).output().unwrap();
    let failed = Finished::from(output);
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains("cannot write") && failed.stderr.contains(".parquet"), "{}", failed.stderr);
    assert_eq!(finished_shards(&scratch, "data"), finished);
    let ended = scratch.run(&arguments("data", "2"));
    assert!(ended.stderr.contains(&format!("continuing behind {finished} shard")), "{}", ended.stderr);
    scratch.succeed(&["data", "validate", "data"]);
}

#[test]
fn validate_ends_with_1_when_anything_is_wrong_and_names_it() {
    let scratch = scratch();
    scratch.succeed(&arguments("data", "2"));
    assert!(scratch.succeed(&["data", "validate", "data"]).contains("all sound"));
    let object: Value = serde_json::from_str(&scratch.succeed(&["data", "validate", "data", "--json"])).unwrap();
    assert_eq!((&object["valid"], &object["violations"]), (&json!(true), &json!([])));

    let shard = scratch.path("data/train/00001.parquet");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[64] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let found = scratch.run(&["data", "validate", "data"]);
    assert_eq!(found.code, Some(1));
    assert!(found.stdout.contains("train/00001.parquet: its content is not"), "{}", found.stdout);
    assert!(found.stderr.contains("1 violation"), "{}", found.stderr);
    let found = scratch.run(&["data", "validate", "data", "--json"]);
    let object: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!((found.code, &object["violations"][0]["fault"]), (Some(1), &json!("shard")));
}

#[test]
fn the_memory_limit_of_the_command_line_is_kept() {
    let scratch = scratch();
    let with = |limit: &'static str| [&arguments("data", "2")[..], &["--memory-limit", limit]].concat();
    scratch.refuse(&with("1kB"), 1, &["packing", "raise the memory limit"]);
    scratch.refuse(&with("much"), 2, &["`much` is no size"]);
    scratch.succeed(&with("400MiB"));
}

#[test]
fn the_account_of_tokens_is_printed_and_adds_up() {
    let scratch = scratch();
    let printed = scratch.succeed(&arguments("data", "2"));
    let sum = |way: &str| -> u64 {
        let lines = printed.lines().filter_map(|line| line.strip_prefix(way));
        lines.map(|line| line.split_whitespace().next().unwrap().replace(',', "").parse::<u64>().unwrap()).sum()
    };
    assert!(sum("tokens in") > 100_000, "{printed}");
    assert_eq!(sum("tokens in"), sum("tokens out") + sum("dropped"), "{printed}");
}
