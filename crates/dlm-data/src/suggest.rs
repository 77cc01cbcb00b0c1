//! The known name nearest to a mistyped one.

/// Below this Jaro-Winkler similarity a name is no help.
const SIMILAR: f64 = 0.75;

/// The name among `known` that is most like `word`, if any is.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|name| (strsim::jaro_winkler(word, name), name));
    let closest = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (closest.0 >= SIMILAR).then_some(closest.1)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_finds_its_word_and_nonsense_finds_none() {
        let known = ["sequence_len", "strategy", "window"];
        assert_eq!(nearest("seq_len", known), Some("sequence_len"));
        assert_eq!(nearest("sequence_length", known), Some("sequence_len"));
        assert_eq!(nearest("windwo", known), Some("window"));
        assert_eq!(nearest("colour", known), None);
    }
}
