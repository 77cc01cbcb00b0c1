//! Attention in pieces: which tokens attend to which, as ranges, where that is cheaper than a mask.

use dlm_diffusion::{AttentionLayout, Visibility};
use tch::{Kind, Tensor};

/// What a piece costs beside its scores, in scores: a few small matrix products for each block of the model.
const PIECE: i64 = 4096;

/// A document's tokens in a row.
#[derive(Debug, Clone, Copy)]
struct Document {
    /// -1 stands for all rows alike.
    row: i64,
    start: i64,
    len: i64,
}

/// The ranges of a layout in the form of [`dlm_torch::attention`]; `None` where a mask is as cheap or the only way.
pub(crate) fn pieces(layout: &AttentionLayout, batch: i64, seq_len: i64) -> Option<Tensor> {
    let pieces = all_pieces(layout, seq_len)?;
    let rows = |piece: &[i64; 7]| if piece[0] < 0 { batch } else { 1 };
    let scores: i64 = pieces.iter().map(|piece| rows(piece) * piece[2] * (piece[4] + piece[6])).sum();
    let cost = scores + PIECE * pieces.len() as i64;
    (cost <= batch * seq_len * seq_len).then(|| table(&pieces))
}

fn table(pieces: &[[i64; 7]]) -> Tensor {
    Tensor::from_slice(&pieces.concat()).view([pieces.len() as i64, 7])
}

/// `[row, first query, queries, first key, keys, first of more keys, more keys]` each.
fn all_pieces(layout: &AttentionLayout, seq_len: i64) -> Option<Vec<[i64; 7]>> {
    match layout.visibility {
        Visibility::Bidirectional => {
            let documents = documents(layout, seq_len, 1)?;
            Some(documents.iter().map(|&Document { row, start, len }| [row, start, len, start, len, 0, 0]).collect())
        }
        Visibility::BlockCausal { block_length } => {
            let mut pieces = Vec::new();
            for Document { row, start, len } in documents(layout, seq_len, 1)? {
                for (first, block) in blocks(len, block_length) {
                    pieces.push([row, start + first, block, start, first + block, 0, 0]);
                }
            }
            Some(pieces)
        }
        Visibility::NoisyAndClean { block_length, seq_len: text } if seq_len == 2 * text => {
            let mut pieces = Vec::new();
            for Document { row, start, len } in documents(layout, text, 2)? {
                for (first, block) in blocks(len, block_length) {
                    let (noised, clean) = (start + first, text + start);
                    pieces.push([row, noised, block, noised, block, clean, first]);
                    pieces.push([row, clean + first, block, clean, first + block, 0, 0]);
                }
            }
            Some(pieces)
        }
        _ => None,
    }
}

/// First token and length of each block of a document.
fn blocks(len: i64, block_length: i64) -> impl Iterator<Item = (i64, i64)> {
    let block_length = block_length.max(1);
    (0..len).step_by(block_length as usize).map(move |first| (first, block_length.min(len - first)))
}

/// The documents of a layout whose rows hold their text so many times; `None` where a document lies in more than one place.
fn documents(layout: &AttentionLayout, text: i64, times: i64) -> Option<Vec<Document>> {
    let Some(ids) = &layout.segment_ids else { return Some(vec![Document { row: -1, start: 0, len: text }]) };
    let rows = ids.size()[0];
    let ids = Vec::<i64>::try_from(ids.to_kind(Kind::Int64).flatten(0, 1)).ok()?;
    let mut documents = Vec::new();
    for row in 0..rows {
        let row_ids = &ids[(row * text * times) as usize..][..(text * times) as usize];
        let (first, rest) = row_ids.split_at(text as usize);
        if times == 2 && first != rest {
            return None;
        }
        let (mut start, mut seen) = (0, Vec::new());
        for run in first.chunk_by(|a, b| a == b) {
            let len = run.len() as i64;
            if run[0] > 0 {
                if seen.contains(&run[0]) {
                    return None;
                }
                seen.push(run[0]);
                documents.push(Document { row, start, len });
            }
            start += len;
        }
    }
    Some(documents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn pieces_cover_exactly_what_the_layout_allows() {
        let ids = Tensor::from_slice2(&[[1i64, 1, 1, 2, 2, 0, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]]);
        let twice = Tensor::cat(&[&ids, &ids], 1);
        let block_length = 2;
        let cases = [
            (Visibility::Bidirectional, &ids),
            (Visibility::BlockCausal { block_length }, &ids),
            (Visibility::BlockCausal { block_length: 3 }, &ids),
            (Visibility::NoisyAndClean { block_length, seq_len: 8 }, &twice),
            (Visibility::NoisyAndClean { block_length: 8, seq_len: 8 }, &twice),
        ];
        for (visibility, ids) in cases {
            for has_segments in [true, false] {
                let layout =
                    if has_segments { AttentionLayout::segments(ids).unwrap() } else { AttentionLayout::full() };
                let layout = layout.with_visibility(visibility);
                let seq_len = ids.size()[1];
                let mask = Tensor::zeros([2, seq_len, seq_len], (Kind::Bool, Device::Cpu));
                for [row, query, queries, key, keys, more, mores] in all_pieces(&layout, seq_len).unwrap() {
                    let rows = if row < 0 { mask.shallow_clone() } else { mask.narrow(0, row, 1) };
                    for (key, keys) in [(key, keys), (more, mores)] {
                        let _ = rows.narrow(1, query, queries).narrow(2, key, keys).fill_(1);
                    }
                }
                for row in 0..2 {
                    for query in 0..seq_len {
                        for key in 0..seq_len {
                            let found = mask.int64_value(&[row, query, key]) == 1;
                            assert_eq!(found, layout.allow(row, query, key), "{visibility:?} {row} {query} {key}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn many_short_documents_and_documents_in_two_places_keep_their_mask() {
        let layout = |ids: &[i64]| AttentionLayout::segments(&Tensor::from_slice(ids).unsqueeze(0)).unwrap();
        let long: Vec<i64> = (0..512).map(|i| 1 + i / 256).collect();
        assert_eq!(pieces(&layout(&long), 1, 512).unwrap().size(), [2, 7]);
        let short: Vec<i64> = (0..512).map(|i| 1 + i / 2).collect();
        assert!(pieces(&layout(&short), 1, 512).is_none());
        let split: Vec<i64> = (0..512).map(|i| 1 + i / 128 % 2).collect();
        assert!(pieces(&layout(&split), 1, 512).is_none());
        assert!(pieces(&AttentionLayout::causal(), 1, 512).is_none());
    }
}
