//! `{% generation %}`: the tags that templates put around what the assistant says.

use minijinja::{Error, State};

/// The filter that stands in for the tags.
pub(crate) const GENERATION_FILTER: &str = "__generation";
/// The variables with the marks that it puts around a block.
pub(crate) const START: &str = "__generation_start";
pub(crate) const END: &str = "__generation_end";

/// Puts the marks around a block.
pub(crate) fn enclose(state: &State, block: &str) -> Result<String, Error> {
    let mark = |name| state.lookup(name).map(|mark| mark.to_string()).unwrap_or_default();
    Ok(format!("{}{block}{}", mark(START), mark(END)))
}

/// Writes the tags, which the engine does not know, as filter blocks, which do the same to white space and scopes.
///
/// Lines keep their numbers. Comments and raw blocks are left alone.
pub(crate) fn as_filters(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%").into_iter().chain(rest.find("{#")).min() {
        let closing = if rest[start..].starts_with("{#") { "#}" } else { "%}" };
        let Some(len) = rest[start..].find(closing).map(|len| len + closing.len()) else { break };
        out.push_str(&rest[..start]);
        let tag = &rest[start..start + len];
        rest = &rest[start + len..];
        match inside(tag) {
            Some("generation") => out.push_str(&tag.replacen("generation", &format!("filter {GENERATION_FILTER}"), 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endfilter", 1)),
            Some("raw") => {
                let end = end_of_raw(rest);
                out.push_str(tag);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    out
}

/// What a block tag says, without delimiters and white space; `None` for a comment.
fn inside(tag: &str) -> Option<&str> {
    let tag = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let control = ['-', '+'];
    Some(
        tag.strip_prefix(control)
            .unwrap_or(tag)
            .strip_suffix(control)
            .unwrap_or(tag.strip_prefix(control).unwrap_or(tag))
            .trim(),
    )
}

/// Where the tag that ends a raw block begins.
fn end_of_raw(text: &str) -> usize {
    let mut start = 0;
    while let Some(found) = text[start..].find("{%") {
        let tag = start + found;
        let Some(len) = text[tag..].find("%}") else { break };
        if inside(&text[tag..tag + len + 2]) == Some("endraw") {
            return tag;
        }
        start = tag + 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tags_become_filter_blocks_and_keep_their_white_space_control() {
        let source = "a\n{%- generation -%}\nb{% endgeneration %}{% if generation %}c{% endif %}";
        let expected = "a\n{%- filter __generation -%}\nb{% endfilter %}{% if generation %}c{% endif %}";
        assert_eq!(as_filters(source), expected);
    }

    #[test]
    fn raw_blocks_comments_and_unfinished_tags_stay_as_they_are() {
        for source in ["{% raw %}{% generation %}{% endraw %}", "{# {% generation %} #}", "{% generation", "{{ 'x' }}"]
        {
            assert_eq!(as_filters(source), source);
        }
    }
}
