//! Commands before a prompt: `:complete N` appends masks, `:mask R` masks a share of the text.

use crate::{
    canvas::check_mask_ratio,
    error::{Result, SampleError},
};

/// Tokens that `:complete` without a number generates.
pub const DEFAULT_COMPLETION_TOKENS: usize = 64;

/// What to do with a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptMode {
    /// Continue it: `:complete`.
    Complete,
    /// Mask some of its tokens and fill them again: `:mask`.
    Mask,
}

/// A prompt and the commands that stood before it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct PromptCommands<'a> {
    /// The last command's mode; `None` without a command.
    pub mode: Option<PromptMode>,
    /// Tokens to generate, if `:complete` was given.
    pub completion_tokens: Option<usize>,
    /// Share of tokens to mask, above 0 and at most 1, if `:mask` was given with one.
    pub mask_ratio: Option<f64>,
    /// The prompt, its white space untouched; empty when there is nothing but commands.
    pub text: &'a str,
}

/// Reads the commands at the start of a prompt.
///
/// Several may follow each other; the last one decides the mode, numbers of the others stay. The number may be left
/// out. One white space ends a command and belongs to it; all that follows is the prompt as it was typed. What is no
/// command is text, and so is a text without commands.
///
/// ```
/// use dlm_sample::{PromptMode, parse_commands};
///
/// let prompt = parse_commands(":complete 12 def f(x):\n    return")?;
/// assert_eq!((prompt.mode, prompt.completion_tokens), (Some(PromptMode::Complete), Some(12)));
/// assert_eq!(prompt.text, "def f(x):\n    return");
/// assert!(parse_commands(":mask 1.5 The quick brown fox").is_err());
/// # Ok::<(), dlm_sample::SampleError>(())
/// ```
///
/// # Errors
/// [`SampleError::BadCommand`] for a number that makes no sense: not a positive one of tokens, not a ratio above 0 and
/// at most 1.
pub fn parse_commands(prompt: &str) -> Result<PromptCommands<'_>> {
    let mut parsed = PromptCommands { mode: None, completion_tokens: None, mask_ratio: None, text: prompt };
    loop {
        let (word, rest) = next_word(parsed.text);
        let (value, after_value) = next_word(rest);
        let has_value = match word {
            ":complete" => {
                let count = completion_tokens(value)?;
                parsed.mode = Some(PromptMode::Complete);
                parsed.completion_tokens = Some(count.unwrap_or(DEFAULT_COMPLETION_TOKENS));
                count.is_some()
            }
            ":mask" => {
                let ratio = mask_ratio(value)?;
                parsed.mode = Some(PromptMode::Mask);
                parsed.mask_ratio = ratio.or(parsed.mask_ratio);
                ratio.is_some()
            }
            _ => return Ok(parsed),
        };
        parsed.text = if has_value { after_value } else { rest };
        parsed.text = parsed.text.strip_prefix("\r\n").unwrap_or_else(|| {
            let mut characters = parsed.text.chars();
            if characters.next().is_some_and(char::is_whitespace) { characters.as_str() } else { parsed.text }
        });
    }
}

/// The first word and everything behind it, white space included.
fn next_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()))
}

/// A word as a number of tokens; `None` when it is no whole number and so belongs to the prompt.
fn completion_tokens(word: &str) -> Result<Option<usize>> {
    let digits = word.strip_prefix(['+', '-']).unwrap_or(word).replace('_', "");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match without_separators(word).and_then(|number| number.parse().ok()) {
        Some(count) if count > 0 => Ok(Some(count)),
        _ => Err(bad_command("complete", word, "the number of tokens is a whole number above 0")),
    }
}

/// A word as a mask ratio; `None` when it is no number and so belongs to the prompt.
fn mask_ratio(word: &str) -> Result<Option<f64>> {
    let Some(ratio) = without_separators(word).and_then(|number| number.parse::<f64>().ok()) else { return Ok(None) };
    if check_mask_ratio(ratio).is_err() {
        return Err(bad_command("mask", word, "the ratio of masked tokens is above 0 and at most 1"));
    }
    Ok(Some(ratio))
}

/// Removes underscores between digits, as in `1_000`; `None` when one stands elsewhere.
fn without_separators(word: &str) -> Option<String> {
    let bytes = word.as_bytes();
    let is_digit = |index: usize| bytes.get(index).is_some_and(u8::is_ascii_digit);
    let is_stray = |index: usize| bytes[index] == b'_' && !(index > 0 && is_digit(index - 1) && is_digit(index + 1));
    if (0..bytes.len()).any(is_stray) { None } else { Some(word.replace('_', "")) }
}

fn bad_command(command: &'static str, value: &str, expected: &'static str) -> SampleError {
    SampleError::BadCommand { command, value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_prompt_without_a_command_stays_as_it_was(prompt in "[^:]{0,40}") {
            let parsed = parse_commands(&prompt).unwrap();
            prop_assert_eq!(parsed.text, prompt.as_str());
            prop_assert_eq!(parsed.mode, None);
        }

        #[test]
        fn a_prompt_behind_a_command_keeps_its_white_space(prompt in "[ \n\t]{0,3}[a-z][a-z \n\t]{0,20}") {
            for command in [":mask 0.5", ":complete 7", ":complete 3 :mask .25"] {
                let line = format!("{command} {prompt}");
                prop_assert_eq!(parse_commands(&line).unwrap().text, prompt.as_str());
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "(:mask|:complete|[0-9_.+\\-e ]|nan|\\PC){0,12}") {
            let _ = parse_commands(&text);
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_with_the_command() {
        let refused = [
            ":complete -4 x",
            ":complete 0 x",
            ":mask nan x",
            ":mask 1.5 x",
            ":mask -0.2 x",
            ":mask 0 x",
            ":mask inf x",
        ];
        for prompt in refused {
            assert!(matches!(parse_commands(prompt), Err(SampleError::BadCommand { .. })), "{prompt}");
        }
        let error = parse_commands(":complete 99999999999999999999999 x").unwrap_err();
        assert!(error.to_string().starts_with("`:complete 99999999999999999999999` makes no sense"), "{error}");
        assert!(error.help().unwrap().contains(":complete 64"));
    }

    #[test]
    fn numbers_are_read_as_python_reads_them() {
        let count = |prompt| parse_commands(prompt).unwrap().completion_tokens;
        assert_eq!((count(":complete 1_0 x"), count(":complete +9 x")), (Some(10), Some(9)));
        let ratio = |prompt| parse_commands(prompt).unwrap().mask_ratio;
        assert_eq!((ratio(":mask .5 x"), ratio(":mask 1e-1 x")), (Some(0.5), Some(0.1)));
    }

    #[test]
    fn a_word_that_is_no_number_belongs_to_the_prompt() {
        let parsed = parse_commands(":mask half of it").unwrap();
        assert_eq!((parsed.mode, parsed.mask_ratio, parsed.text), (Some(PromptMode::Mask), None, "half of it"));
        assert_eq!(parse_commands(":complete\n  12").unwrap().completion_tokens, Some(12));
        assert_eq!(parse_commands(":complete\r\nonce").unwrap().text, "once");
    }
}
