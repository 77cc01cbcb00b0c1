//! A canvas as a person reads it: its masks written `[MASK]`, its special tokens gone.

/// What stands for a mask token in text.
pub const MASK_TEXT: &str = "[MASK]";

/// Tidies a decoded canvas for a preview, as Axolotl does.
///
/// The mask token becomes [`MASK_TEXT`]; `specials`, the texts of the tokenizer's bos, eos, pad and unk tokens,
/// disappear; spaces and tabs in a row become one space, line ends lose their white space. For display only: the text
/// cannot be encoded back.
///
/// ```
/// let text = "<s>The <|diffusion_mask|>  fox</s>";
/// assert_eq!(dlm_sample::masked_text(text, "<|diffusion_mask|>", &["<s>", "</s>"]), "The [MASK] fox");
/// ```
#[must_use]
pub fn masked_text(decoded: &str, mask_token: &str, specials: &[&str]) -> String {
    let replace = |text: String, from: &str, to: &str| if from.is_empty() { text } else { text.replace(from, to) };
    let text = replace(decoded.to_owned(), mask_token, MASK_TEXT);
    let text = specials.iter().fold(text, |text, special| replace(text, special, ""));
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<String> = text.split('\n').map(|line| one_space(line).trim_end().to_owned()).collect();
    lines.join("\n").trim().to_owned()
}

fn one_space(line: &str) -> String {
    let mut result = String::with_capacity(line.len());
    for character in line.chars() {
        match character {
            ' ' | '\t' if result.ends_with(' ') => {}
            ' ' | '\t' => result.push(' '),
            other => result.push(other),
        }
    }
    result
}
