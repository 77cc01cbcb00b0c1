//! Which tokens the model must produce: the assistant's words in a rendered conversation, and the token that ends a turn.

use crate::{
    batch::IGNORE_INDEX,
    chat::Piece,
    chat_options::{Messages, TrainOnEnd},
    messages::{Detail, Turn},
};
use dlm_tokenizer::{ChatTemplate, Message, RenderOptions, Rendered, Specials};
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, ops::Range};

/// How far behind an answer its end token may stand, in tokens (Axolotl's number).
pub(crate) const END_WITHIN: usize = 3;

/// Which tokens behind a turn are targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TurnEnd {
    /// The first of the tokens that the options name as ends of turns.
    pub eot: EndLabel,
    /// The tokenizer's end token.
    pub eos: EndLabel,
}

/// Whether a token behind a turn is a target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EndLabel {
    /// It is not.
    #[default]
    No,
    /// It is.
    Yes,
    /// It is behind the last such turn that has one.
    IfLast,
}

/// Renders messages and marks the turns that are answers.
///
/// Where a turn stands is found by rendering the conversation again with other words in its place: what differs is the turn.
/// That holds for any template, also for one that trims or quotes.
pub(crate) fn mark_answers(
    template: &ChatTemplate,
    render: &RenderOptions,
    turns: &[Turn],
    options: &Messages,
) -> Result<Vec<Piece>, String> {
    let mut messages: Vec<Message> = turns.iter().map(|turn| turn.message.clone()).collect();
    let rendered = template.render_parts(&messages, render).map_err(|error| error.to_string())?;
    let train_on_eot = options.train_on_eot.unwrap_or(options.train_on_eos);
    let looks_at_all = [train_on_eot, options.train_on_eos].contains(&TrainOnEnd::All);

    let mut answers: Vec<Range<usize>> = Vec::new();
    let mut ends: Vec<(usize, TurnEnd)> = Vec::new();
    for (i, turn) in turns.iter().enumerate() {
        let is_answer = turn.is_answer(options);
        if !is_answer && !looks_at_all {
            continue;
        }
        let which = || format!("message {} ({})", i + 1, turn.message.role);
        let Some(words) = stand_in(&turn.message.content) else {
            return Err(format!("{} has no text, and answers need some", which()));
        };
        // Reasoning and calls of tools are the turn's own words too.
        let other = Message { role: turn.message.role.clone(), content: words, other: Map::new() };
        let message = std::mem::replace(&mut messages[i], other);
        let other = template.render(&messages, render).map_err(|error| error.to_string())?;
        messages[i] = message;
        let Some(found) = difference(&rendered.text, &other) else {
            if is_answer {
                return Err(format!("the chat template leaves out {}", which()));
            }
            continue;
        };
        let label = |rule: TrainOnEnd| match rule {
            TrainOnEnd::Turn if is_answer => EndLabel::Yes,
            TrainOnEnd::Turn | TrainOnEnd::None => EndLabel::No,
            TrainOnEnd::All => EndLabel::Yes,
            TrainOnEnd::Last => EndLabel::IfLast,
        };
        ends.push((found.end, TurnEnd { eot: label(train_on_eot), eos: label(options.train_on_eos) }));
        match &turn.detail {
            Some(details) if is_answer => {
                let parts = parts_of(&rendered.text[found.clone()], &turn.message, details);
                let parts = parts.map_err(|error| format!("{} {error}", which()))?;
                answers.extend(parts.into_iter().map(|part| found.start + part.start..found.start + part.end));
            }
            _ if is_answer => answers.push(found),
            _ => {}
        }
    }
    Ok(pieces(&rendered, &answers, &ends))
}

impl Turn {
    fn is_answer(&self, options: &Messages) -> bool {
        let role = &self.message.role;
        let of_role = |name: &String| {
            let role_of = |names: &[String]| names.contains(name);
            options.roles.iter().find(|(_, names)| role_of(names)).map_or(name, |(role, _)| role) == role
        };
        let by_detail = self.detail.as_ref().map(|details| !details.is_empty());
        let by_role = || options.train_on_inputs || options.roles_to_train.iter().any(of_role);
        self.training.or(by_detail).unwrap_or_else(by_role)
    }
}

/// The rendered text in pieces, which end wherever one of their properties changes and where a turn ends.
fn pieces(rendered: &Rendered, answers: &[Range<usize>], ends: &[(usize, TurnEnd)]) -> Vec<Piece> {
    let ranges = rendered.said.iter().chain(answers).flat_map(|range| [range.start, range.end]);
    let borders = ranges.chain(ends.iter().map(|(end, _)| *end)).chain([0, rendered.text.len()]);
    let borders: Vec<usize> = borders.collect::<BTreeSet<usize>>().into_iter().collect();
    let within = |ranges: &[Range<usize>], at: usize| ranges.iter().any(|range| range.contains(&at));
    let piece = |start: usize, end: usize| Piece {
        text: rendered.text[start..end].to_owned(),
        specials: if within(&rendered.said, start) { Specials::AsText } else { Specials::Parse },
        is_answer: within(answers, start),
        turn_end: ends.iter().rfind(|(at, _)| *at == end).map(|(_, end)| *end).unwrap_or_default(),
    };
    borders.windows(2).map(|border| piece(border[0], border[1])).collect()
}

/// Other content, whose first and last characters are not those of the content.
fn stand_in(content: &Value) -> Option<Value> {
    let words = |text: &str| {
        let text = text.trim();
        let differs = |other: &&str| !text.starts_with(&other[..1]) && !text.ends_with(&other[other.len() - 1..]);
        ["[[dummy_message]]", "##dummy_message##", "%%dummy_message%%", "~~dummy_message~~"].into_iter().find(differs)
    };
    match content {
        Value::Null => Some(json!(words("")?)),
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
    while end > start
        && other_end > start
        && same(text[start..end].chars().next_back(), other[start..other_end].chars().next_back())
    {
        let width = text[start..end].chars().next_back().map_or(0, char::len_utf8);
        end -= width;
        other_end -= width;
    }
    Some(start..end)
}

/// The bytes of a turn, rendered as `turn`, that its details make targets.
fn parts_of(turn: &str, message: &Message, details: &[Detail]) -> Result<Vec<Range<usize>>, String> {
    let content = message.text().ok_or("has parts to be learnt, and is no single text")?;
    let trimmed = content.find(turn).ok_or("has parts to be learnt, and the chat template changes its words")?;
    let characters = content.chars().count();
    // Where each character begins, and the end.
    let starts: Vec<usize> = content.char_indices().map(|(at, _)| at).chain([content.len()]).collect();
    let mut parts = Vec::new();
    for detail in details {
        if detail.begin > detail.end || detail.end >= characters {
            let Detail { begin, end, .. } = detail;
            return Err(format!("has a part from character {begin} to {end}, and has {characters} characters"));
        }
        if detail.train {
            let within = |at: usize| at.saturating_sub(trimmed).min(turn.len());
            parts.push(within(starts[detail.begin])..within(starts[detail.end + 1]));
        }
    }
    parts.retain(|part: &Range<usize>| !part.is_empty());
    parts.sort_by_key(|part| part.start);
    Ok(parts)
}

/// Tokens that may end a turn, and what a turn says about them.
pub(crate) type EndGroup<'a> = (&'a [i32], fn(TurnEnd) -> EndLabel);

/// Labels the end tokens behind turns: of each group of `groups` the first token within three of the turn.
///
/// `turns` are the numbers of the tokens behind them. A group is a list of tokens, and what a turn says about it.
pub(crate) fn label_ends(ids: &[i32], labels: &mut [i32], turns: &[(usize, TurnEnd)], groups: &[EndGroup]) {
    for (tokens, rule) in groups {
        let find = |after: usize| {
            let within = ids.iter().skip(after).take(END_WITHIN + 1);
            within.into_iter().position(|id| tokens.contains(id)).map(|distance| after + distance)
        };
        let mut last = None;
        for (after, end) in turns {
            match rule(*end) {
                EndLabel::No => {}
                EndLabel::Yes => find(*after).into_iter().for_each(|at| labels[at] = ids[at]),
                EndLabel::IfLast => last = find(*after).or(last),
            }
        }
        last.into_iter().for_each(|at| labels[at] = ids[at]);
    }
}

/// Whether a token is a target.
pub(crate) fn is_target(label: i32) -> bool {
    label != IGNORE_INDEX
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
        assert_eq!(difference("aaa", "aa"), Some(2..3));
    }

    #[test]
    fn a_stand_in_never_begins_or_ends_like_the_content() {
        assert_eq!(stand_in(&json!("[[1, 2]]")), Some(json!("##dummy_message##")));
        assert_eq!(stand_in(&json!("# [a]")), Some(json!("%%dummy_message%%")));
        assert_eq!(stand_in(&json!("[a%")), Some(json!("##dummy_message##")));
        assert_eq!(stand_in(&json!("text")), Some(json!("[[dummy_message]]")));
        assert_eq!(stand_in(&Value::Null), Some(json!("[[dummy_message]]")));
        assert_eq!(stand_in(&json!(3)), None);
    }

    const YES: TurnEnd = TurnEnd { eot: EndLabel::Yes, eos: EndLabel::No };
    const LAST: TurnEnd = TurnEnd { eot: EndLabel::IfLast, eos: EndLabel::IfLast };

    fn labelled<const N: usize>(ids: [i32; N], turns: &[(usize, TurnEnd)]) -> [i32; N] {
        let mut labels = [IGNORE_INDEX; N];
        label_ends(&ids, &mut labels, turns, &[(&[9], |end| end.eot), (&[8], |end| end.eos)]);
        labels
    }

    #[test]
    fn an_end_token_counts_only_close_behind_its_answer() {
        let ids = [1, 2, 9, 3, 3, 3, 3, 9];
        assert_eq!(labelled(ids, &[(2, YES), (3, YES)]), [-100, -100, 9, -100, -100, -100, -100, -100]);
        assert_eq!(labelled(ids, &[(8, YES)]), [-100; 8]);
    }

    #[test]
    fn of_the_last_ends_the_last_one_that_exists_counts_for_each_kind() {
        assert_eq!(
            labelled([1, 9, 8, 2, 9, 3, 3, 3], &[(1, LAST), (4, LAST)]),
            [-100, -100, 8, -100, 9, -100, -100, -100]
        );
    }
}
