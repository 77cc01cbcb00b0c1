//! Which tokens the model must produce: the assistant's words in a rendered conversation, and the token that ends a turn.

use crate::{batch::IGNORE_INDEX, chat::Piece, step::Messages};
use dlm_tokenizer::{Message, RenderOptions, Specials, Tokenizer};
use serde_json::{Value, json};
use std::{collections::BTreeSet, ops::Range};

/// What templates that ask for today's date are told, 26 July 2024, so that the same rows always give the same bytes.
const NOW: i64 = 1_721_952_000;

/// How far behind an answer its end token may stand, in tokens (Axolotl's number).
const END_WITHIN: usize = 3;

/// Renders messages and marks the turns that are answers.
///
/// Where a turn stands is found by rendering the conversation again with other words in its place: what differs is the turn.
/// That holds for any template, also for one that trims or quotes.
pub(crate) fn mark_answers(
    tokenizer: &Tokenizer,
    messages: &[Message],
    options: &Messages,
) -> Result<Vec<Piece>, String> {
    let template = tokenizer.chat_template().ok_or("the tokenizer has no chat template")?;
    let render = RenderOptions { now: Some(NOW), ..tokenizer.render_options() };
    let rendered = template.render_parts(messages, &render).map_err(|error| error.to_string())?;

    let mut answers: Vec<Range<usize>> = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        if !options.train_on_inputs && message.role != "assistant" {
            continue;
        }
        let mut changed = messages.to_vec();
        changed[i].content = stand_in(&message.content)
            .ok_or_else(|| format!("message {} ({}) has no text, and answers need some", i + 1, message.role))?;
        let other = template.render(&changed, &render).map_err(|error| error.to_string())?;
        let answer = difference(&rendered.text, &other)
            .ok_or_else(|| format!("the chat template leaves out message {} ({})", i + 1, message.role))?;
        answers.push(answer);
    }

    // Pieces end wherever one of the two properties changes.
    let ranges = rendered.said.iter().chain(&answers).flat_map(|range| [range.start, range.end]);
    let borders: BTreeSet<usize> = ranges.chain([0, rendered.text.len()]).collect();
    let borders: Vec<usize> = borders.into_iter().collect();
    let within = |ranges: &[Range<usize>], at: &usize| ranges.iter().any(|range| range.contains(at));
    let pieces = borders.windows(2).map(|ends| Piece {
        text: rendered.text[ends[0]..ends[1]].to_owned(),
        specials: if within(&rendered.said, &ends[0]) { Specials::AsText } else { Specials::Parse },
        is_answer: within(&answers, &ends[0]),
    });
    Ok(pieces.collect())
}

/// Other content of the same kind, whose first and last characters are not those of the content.
fn stand_in(content: &Value) -> Option<Value> {
    let words = |text: &str| {
        let text = text.trim();
        let differs = |other: &&str| !text.starts_with(&other[..1]) && !text.ends_with(&other[other.len() - 1..]);
        ["[[dummy_message]]", "##dummy_message##", "%%dummy_message%%"].into_iter().find(differs)
    };
    match content {
        Value::String(text) => Some(json!(words(text)?)),
        Value::Array(parts) => {
            let texts: String = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            Some(json!([{ "type": "text", "text": words(&texts)? }]))
        }
        _ => None,
    }
}

/// The part of `text` where `other` differs, in bytes; `None` when it differs nowhere.
fn difference(text: &str, other: &str) -> Option<Range<usize>> {
    if text == other {
        return None;
    }
    let same = |a: Option<char>, b: Option<char>| a.is_some() && a == b;
    let mut start = 0;
    while same(text[start..].chars().next(), other[start..].chars().next()) {
        start += text[start..].chars().next().map_or(0, char::len_utf8);
    }
    let (mut end, mut other_end) = (text.len(), other.len());
    while same(text[start..end].chars().next_back(), other[start..other_end].chars().next_back()) {
        let width = text[start..end].chars().next_back().map_or(0, char::len_utf8);
        end -= width;
        other_end -= width;
    }
    Some(start..end)
}

/// Labels the end token behind each answer: the first of `ends` within three tokens of it.
pub(crate) fn label_ends(ids: &[i32], labels: &mut [i32], answer_ends: &[usize], ends: &[i32]) {
    for &after in answer_ends {
        let found = ids.iter().skip(after).position(|id| ends.contains(id));
        if let Some(distance) = found.filter(|distance| *distance <= END_WITHIN) {
            debug_assert!(
                labels[after + distance] == IGNORE_INDEX || labels[after + distance] == ids[after + distance]
            );
            labels[after + distance] = ids[after + distance];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_what_was_replaced() {
        let text = |words: &str| format!("<a> é{words}é </a>");
        let found = difference(&text("hällo"), &text("##x##")).unwrap();
        assert_eq!(&text("hällo")[found], "hällo");
        assert_eq!(difference("same", "same"), None);
        let empty = difference(&text(""), &text("##x##")).unwrap();
        assert!(empty.is_empty());
        assert_eq!(empty.start, "<a> é".len());
    }

    #[test]
    fn a_stand_in_never_begins_or_ends_like_the_content() {
        assert_eq!(stand_in(&json!("[[1, 2]]")), Some(json!("##dummy_message##")));
        assert_eq!(stand_in(&json!("# [a]")), Some(json!("%%dummy_message%%")));
        assert_eq!(stand_in(&json!("text")), Some(json!("[[dummy_message]]")));
        assert_eq!(stand_in(&Value::Null), None);
    }

    #[test]
    fn an_end_token_counts_only_close_behind_its_answer() {
        let ids = [1, 2, 9, 3, 3, 3, 3, 9];
        let mut labels = [IGNORE_INDEX; 8];
        label_ends(&ids, &mut labels, &[2, 3], &[9]);
        assert_eq!(labels, [-100, -100, 9, -100, -100, -100, -100, -100]);
    }
}
