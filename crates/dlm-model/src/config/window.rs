//! Sliding windows: how many keys back the queries of each block look when they look back only.

use super::{LARGEST, family::Window, keys::Keys};
use crate::error::Result;
use serde_json::{Value, json};

const LAYER_TYPES: &[(&str, bool)] = &[("full_attention", false), ("sliding_attention", true)];

/// The window of each block; `None` where it is not shorter than the longest row.
pub(super) fn read(
    family: Window,
    keys: &mut Keys<'_>,
    n_layers: i64,
    max_position_embeddings: i64,
) -> Result<Vec<Option<i64>>> {
    let is_absent = !keys.contains("sliding_window");
    let window = keys.integer("sliding_window", 1..=LARGEST)?;
    // Only null says that there is none: the family's reference puts its default where the key is absent.
    let or_default = |default| if is_absent { Some(default) } else { window };
    let (window, first) = match family {
        Window::Never => {
            if let Some(window) = window.filter(|&window| window < max_position_embeddings) {
                let accepted =
                    format!("null, or at least `max_position_embeddings`, which is {max_position_embeddings}");
                return Err(keys.refused("sliding_window", &json!(window), accepted));
            }
            (None, 0)
        }
        Window::Key(default) => (or_default(default), 0),
        Window::Switched => {
            let first = keys.integer("max_window_layers", 0..=LARGEST)?.unwrap_or(28);
            (keys.flag("use_sliding_window")?.unwrap_or(false).then(|| or_default(4096)).flatten(), first)
        }
    };
    let slides = match keys.each_word("layer_types", LAYER_TYPES)? {
        Some(types) if types.len() as i64 != n_layers => {
            let accepted = format!("a list of `num_hidden_layers`, which is {n_layers}");
            return Err(keys.refused("layer_types", &json!(types.len()), accepted));
        }
        Some(types) if window.is_none() && types.contains(&true) => {
            let found = keys.value("layer_types").unwrap_or(&Value::Null);
            return Err(keys.refused(
                "layer_types",
                found,
                "a list of `full_attention` where no `sliding_window` is on",
            ));
        }
        Some(types) => types,
        None => (0..n_layers).map(|layer| layer >= first).collect(),
    };
    let window = window.filter(|&window| window < max_position_embeddings);
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}
