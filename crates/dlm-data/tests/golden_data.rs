//! What Axolotl makes of documents: bins and batches, compared number by number.

use dlm_data::{
    Chat, ChatFormat, Cursor, Encoder, IGNORE_INDEX, Messages, Pack, PackStrategy, Packer, Pipeline, PrepareOptions,
    PreparedData, Reader, ReaderConfig, Split, Tokenize, first_fit, first_fit_decreasing, sequential,
};
use dlm_golden::{integers, json_named, model};
use dlm_tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::{fs, path::Path, sync::Arc};

fn cases<'a>(file: &'a Value, list: &str) -> &'a Vec<Value> {
    file[list].as_array().unwrap_or_else(|| panic!("there is no list `{list}`"))
}

fn word(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("`{key}` of {value} is no text"))
}

fn ids(value: &Value) -> Vec<i32> {
    integers(value).into_iter().map(|id| i32::try_from(id).unwrap()).collect()
}

fn count(value: &Value, key: &str) -> usize {
    usize::try_from(value[key].as_u64().unwrap_or_else(|| panic!("`{key}` of {value} is no count"))).unwrap()
}

fn encoder(name: &str, chat: Option<&Chat>) -> (Arc<Tokenizer>, Encoder) {
    let folder = model(name);
    let tokenizer = Arc::new(Tokenizer::load(&folder).unwrap());
    let encoder = Encoder::new(Arc::clone(&tokenizer), &folder, &Tokenize::new(&folder), chat).unwrap();
    (tokenizer, encoder)
}

#[test]
fn golden_multipack_puts_the_same_samples_into_the_same_bins() {
    let file = json_named("chat_packing");
    for case in cases(&file, "multipack") {
        let lengths: Vec<usize> = integers(&case["lengths"]).into_iter().map(|n| usize::try_from(n).unwrap()).collect();
        let (capacity, most) = (count(case, "capacity"), count(case, "bin_size"));
        let bins: Vec<Vec<usize>> = if case["sequential"] == true {
            sequential(&lengths, capacity)
        } else {
            // Axolotl packs groups of samples by themselves.
            let group_size = count(case, "group_size");
            let groups = lengths.chunks(group_size).enumerate();
            let packed = groups.flat_map(|(group, lengths)| {
                let bins = first_fit(lengths, capacity, most);
                bins.into_iter().map(move |bin| bin.into_iter().map(|i| i + group * group_size).collect())
            });
            packed.collect()
        };
        let batch_size = count(case, "batch_size");
        let mut batches: Vec<&[Vec<usize>]> = bins.chunks(batch_size).collect();
        if case["drop_last"] == true && batches.last().is_some_and(|batch| batch.len() < batch_size) {
            batches.pop();
        }
        let expected: Vec<Vec<Vec<usize>>> = serde_json::from_value(case["batches"].clone()).unwrap();
        assert_eq!(batches, expected, "{case}");
    }
    for case in cases(&file, "ffd_check") {
        let lengths: Vec<usize> = integers(&case["lengths"]).into_iter().map(|n| usize::try_from(n).unwrap()).collect();
        let bins = first_fit_decreasing(&lengths, count(case, "capacity")).len();
        assert_eq!(bins <= count(case, "bins"), case["fits"] == true, "{case}");
    }
}

#[test]
fn golden_collators_lay_packed_rows_out_alike() {
    let file = json_named("chat_packing");
    let mut compared = 0;
    for case in cases(&file, "collators").iter().filter(|case| case["collator"] == "V2BatchSampler") {
        let output = &case["output"];
        let pad_id = i32::try_from(case["pad_token_id"].as_i64().unwrap()).unwrap();
        for (i, features) in case["features"].as_array().unwrap().iter().enumerate() {
            let expected = |key: &str| ids(&output[key][i]);
            let options = Pack { strategy: PackStrategy::Sequential, ..Pack::new(expected("input_ids").len()) };
            let mut packer = Packer::new(options, pad_id);
            for feature in features.as_array().unwrap() {
                assert!(packer.push(0, &ids(&feature["input_ids"]), &ids(&feature["labels"])).0.is_empty());
            }
            let rows = packer.finish();
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].ids, expected("input_ids"));
            assert_eq!(rows[0].labels, expected("labels"));
            assert_eq!(rows[0].segment_ids, expected("attention_mask"));
            assert_eq!(rows[0].position_ids, expected("position_ids"));
            compared += 1;
        }
    }
    assert!(compared > 0, "no collator case was found");
}

/// A whole preparation of a golden case's conversations.
fn prepared(folder: &Path, data: &Value, strategy: PackStrategy) -> PreparedData {
    let conversations = data["conversations"].as_array().unwrap().iter();
    let lines: String = conversations.map(|messages| format!("{{\"messages\": {messages}}}\n")).collect();
    fs::write(folder.join("rows.jsonl"), lines).unwrap();
    let eot_tokens = data["eot_tokens"].as_array().into_iter().flatten().map(word).collect();
    let report = Pipeline::new()
        .relative_to(folder)
        .source("rows.jsonl")
        .chat(Chat::Messages(Messages { eot_tokens, ..Messages::default() }))
        .tokenize(Tokenize::new(model(text(data, "model"))))
        .pack(Pack { strategy, ..Pack::new(count(data, "sequence_len")) })
        .output("prepared")
        .prepare(&PrepareOptions::default(), |_| ())
        .unwrap();
    PreparedData::open(report.output, Split::Train).unwrap()
}

/// Documents of each row, row by row and batch by batch: those of `order`, which Axolotl's sampler was given.
fn bins(data: &PreparedData, micro_batch_size: usize) -> Vec<Vec<Vec<i64>>> {
    let rows = (0..data.rows()).map(|i| data.read_row(i).unwrap().document_ids).collect::<Vec<_>>();
    rows.chunks(micro_batch_size).map(<[Vec<i64>]>::to_vec).collect()
}

#[test]
fn golden_pipeline_gives_the_same_bins_and_batches() {
    let mut compared = 0;
    for path in dlm_golden::files("pipeline_sft", "json") {
        let file = dlm_golden::json(&path);
        let tensors = dlm_golden::tensors(&path.with_extension("safetensors"));
        for data in cases(&file, "cases").iter().filter(|case| case.get("conversations").is_some()) {
            let mut lengths = integers(&data["lengths"]);
            let folder = tempfile::tempdir().unwrap();
            let micro_batch_size = count(data, "micro_batch_size");
            let kept = axolotl_keeps(data, &mut lengths);
            for mode in ["packed", "padded"] {
                let strategy = if mode == "packed" { PackStrategy::FirstFit } else { PackStrategy::Alone };
                let side = folder.path().join(mode);
                fs::create_dir(&side).unwrap();
                let prepared = prepared(&side, &kept, strategy);
                if mode == "packed" {
                    let found = bins(&prepared, micro_batch_size);
                    let expected: Vec<Vec<Vec<i64>>> = serde_json::from_value(data["batches"].clone()).unwrap();
                    assert_eq!(found, expected, "{}", text(data, "name"));
                }
                compared += compare_batches(&file, data, mode, &prepared, &tensors);
            }
        }
    }
    assert!(compared > 0, "no pipeline case was found");
}

/// Axolotl leaves out what is longer than a row; dlm would cut it.
fn axolotl_keeps(data: &Value, lengths: &mut Vec<i64>) -> Value {
    let sequence_len = data["sequence_len"].as_i64().unwrap();
    let chat = Chat::Messages(Messages::default());
    let (tokenizer, encoder) = encoder(text(data, "model"), Some(&chat));
    let format = ChatFormat::new(&chat, tokenizer, Path::new("")).unwrap();
    let mut kept = data.clone();
    let mut found = Vec::new();
    let conversations = kept["conversations"].as_array_mut().unwrap();
    conversations.retain(|messages| {
        let row = json!({ "messages": messages });
        let conversation = format.conversation(row.as_object().unwrap()).unwrap();
        let len = encoder.conversation(&conversation).unwrap().ids.len() as i64;
        let keeps = len <= sequence_len;
        found.extend(keeps.then_some(len));
        keeps
    });
    assert_eq!(found, *lengths, "lengths of {}", text(data, "name"));
    std::mem::swap(lengths, &mut found);
    kept
}

fn compare_batches(
    file: &Value,
    data: &Value,
    mode: &str,
    prepared: &PreparedData,
    tensors: &std::collections::BTreeMap<String, tch::Tensor>,
) -> usize {
    let name = text(data, "name").trim_end_matches("data");
    let batches = cases(file, "cases").iter().filter(|case| text(case, "name").starts_with(&format!("{name}{mode}")));
    let mut compared = 0;
    for case in batches {
        let name = text(case, "name");
        let get = |key: &str| tensors.get(&format!("{name}.{key}"));
        let expected = get("input_ids").unwrap();
        let (rows, width) = (expected.size()[0], usize::try_from(expected.size()[1]).unwrap());
        for row in 0..rows {
            let sample = &case["samples"][usize::try_from(row).unwrap()];
            let first = sample.as_i64().or_else(|| sample[0].as_i64()).unwrap();
            let found = (0..prepared.rows()).map(|i| prepared.read_row(i).unwrap());
            let found = found.filter(|found| found.document_ids.contains(&first)).collect::<Vec<_>>();
            let [found] = found.as_slice() else { panic!("{name}: document {first} stands in {} rows", found.len()) };
            let list = |key: &str| Vec::<i64>::try_from(get(key).unwrap().get(row)).unwrap();
            // The tensors are as wide as their longest row needs; ours are `sequence_len` wide.
            let shared = width.min(prepared.sequence_len());
            let compare = |key: &str, found: &[i32]| {
                let expected: Vec<i32> = list(key).into_iter().map(|value| i32::try_from(value).unwrap()).collect();
                assert_eq!(found[..shared], expected[..shared], "{name}, row {row}: {key}");
                (found[shared..].to_vec(), expected[shared..].to_vec())
            };
            compare("input_ids", &found.input_ids);
            let rest = compare("labels", &found.labels);
            assert!(rest.0.iter().chain(&rest.1).all(|label| *label == IGNORE_INDEX), "{name}: targets in the padding");
            let rest = compare("attention_mask", &found.segment_ids);
            assert!(rest.0.iter().chain(&rest.1).all(|segment| *segment == 0), "{name}: tokens in the padding");
            if get("position_ids").is_some() {
                compare("position_ids", &found.position_ids);
            }
            compared += 1;
        }
    }
    compared
}

#[test]
fn golden_batches_come_out_of_the_reader_in_order() {
    for path in dlm_golden::files("pipeline_sft", "json") {
        let file = dlm_golden::json(&path);
        for data in cases(&file, "cases").iter().filter(|case| case.get("conversations").is_some()) {
            let folder = tempfile::tempdir().unwrap();
            let kept = axolotl_keeps(data, &mut integers(&data["lengths"]));
            let prepared = prepared(folder.path(), &kept, PackStrategy::FirstFit);
            let config = ReaderConfig {
                micro_batch_size: count(data, "micro_batch_size"),
                shuffle: false,
                ..ReaderConfig::default()
            };
            let mut reader = Reader::new(&prepared, config, Cursor::default()).unwrap();
            for expected in data["batches"].as_array().unwrap() {
                let window = reader.next_window().unwrap();
                let documents = window.micro_batches[0].documents.iter().map(|document| (document.row, document.id));
                let rows = expected.as_array().unwrap().iter().enumerate();
                let expected = rows.flat_map(|(row, bin)| integers(bin).into_iter().map(move |id| (row, id)));
                assert_eq!(documents.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            }
        }
    }
}
