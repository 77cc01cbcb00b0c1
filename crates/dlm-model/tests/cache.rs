//! The cache of keys and values beside forward passes without one.

mod common;

use common::model_with;
use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, Visibility};
use dlm_golden::assert_close;
use dlm_model::{CacheUse, DiffusionInfo, KvCache, Model, ModelError};
use tch::{Kind, Tensor};

const BLOCK: i64 = 3;

fn model(logits_shift: bool) -> Model {
    let mut model = model_with(&[]);
    model.set_diffusion(DiffusionInfo::new(49, logits_shift)).unwrap();
    model
}

fn ids() -> Tensor {
    Tensor::from_slice2(&[[5i64, 6, 7, 8, 9, 10, 11, 12, 13], [1, 2, 3, 4, 5, 4, 3, 2, 1]])
}

/// States of a pass over the whole rows, causal over blocks, `[batch, len, hidden]`.
fn uncached(model: &Model, ids: &Tensor) -> Tensor {
    let layout = AttentionLayout::full().with_visibility(Visibility::BlockCausal { block_length: BLOCK });
    let states = model.hidden_states(&DenoiserInput::new(ids, &layout)).unwrap();
    states.view([ids.size()[0], ids.size()[1], -1])
}

fn window(ids: &Tensor, block: i64) -> Tensor {
    ids.narrow(1, block * BLOCK, BLOCK)
}

fn read(model: &Model, cache: &mut KvCache, ids: &Tensor, usage: CacheUse) -> Tensor {
    let states = model.cached_states(ids, cache, usage).unwrap();
    states.view([ids.size()[0], ids.size()[1], -1])
}

#[test]
fn blocks_read_one_after_the_other_have_the_states_of_a_pass_that_is_causal_over_blocks() {
    for shift in [false, true] {
        let (model, ids) = (model(shift), ids());
        let expected = uncached(&model, &ids);
        let mut cache = KvCache::default();
        for block in 0..3 {
            // Looking changes nothing, whatever is looked at.
            let _ = read(&model, &mut cache, &(window(&ids, block) + 7), CacheUse::Peek);
            let peeked = read(&model, &mut cache, &window(&ids, block), CacheUse::Peek);
            assert_eq!(cache.len(), block * BLOCK);
            let found = read(&model, &mut cache, &window(&ids, block), CacheUse::Append);
            assert_eq!(found, peeked);
            assert_close("block", &found, &expected.narrow(1, block * BLOCK, BLOCK), 1e-5, 1e-5);
        }
        assert_eq!(cache.len(), 9);
        // Overwritten by the same tokens while nothing comes later, it is as it was.
        let again = read(&model, &mut cache, &window(&ids, 2), CacheUse::Overwrite { start: 6 });
        assert_close("overwritten", &again, &expected.narrow(1, 6, 3), 1e-5, 1e-5);
    }
}

#[test]
fn a_window_that_is_overwritten_counts_for_those_that_are_read_after_it() {
    let (model, ids) = (model(true), ids());
    let changed = Tensor::cat(&[window(&ids, 0) + 1, window(&ids, 1), window(&ids, 2)], 1);
    let mut cache = KvCache::default();
    let _ = read(&model, &mut cache, &window(&ids, 0), CacheUse::Append);
    let _ = read(&model, &mut cache, &window(&changed, 0), CacheUse::Overwrite { start: 0 });
    let found = read(&model, &mut cache, &window(&ids, 1), CacheUse::Append);
    assert_close("second block", &found, &uncached(&model, &changed).narrow(1, 3, 3), 1e-5, 1e-5);
    // Later tokens are seen by an overwritten window, as the keys that they had.
    let seen = read(&model, &mut cache, &window(&changed, 0), CacheUse::Overwrite { start: 0 });
    assert!((seen - uncached(&model, &changed).narrow(1, 0, 3)).abs().max().double_value(&[]) > 1e-2);
    assert_eq!(cache.len(), 6);
}

#[test]
fn a_cropped_cache_has_forgotten_and_a_reordered_one_has_changed_rows() {
    let (model, ids) = (model(true), ids());
    let mut cache = KvCache::default();
    let _ = read(&model, &mut cache, &window(&ids, 0), CacheUse::Append);
    let _ = read(&model, &mut cache, &(window(&ids, 1) + 3), CacheUse::Append);
    cache.crop(99);
    assert_eq!(cache.len(), 6);
    cache.crop(3);
    let found = read(&model, &mut cache, &window(&ids, 1), CacheUse::Append);
    assert_close("cropped", &found, &uncached(&model, &ids).narrow(1, 3, 3), 1e-5, 1e-5);

    let rows = Tensor::from_slice(&[1i64, 0, 1]);
    cache.reorder(&rows);
    let ids = ids.index_select(0, &rows);
    let found = read(&model, &mut cache, &window(&ids, 2), CacheUse::Append);
    assert_close("reordered", &found, &uncached(&model, &ids).narrow(1, 6, 3), 1e-5, 1e-5);
}

#[test]
fn windows_that_do_not_fit_are_refused() {
    let (model, ids) = (model(false), ids());
    let mut cache = KvCache::default();
    assert!(cache.is_empty());
    let _ = read(&model, &mut cache, &window(&ids, 0), CacheUse::Append);
    let refused = |cache: &mut KvCache, ids: &Tensor, usage| model.cached_states(ids, cache, usage).unwrap_err();
    let error = refused(&mut cache, &window(&ids, 1), CacheUse::Overwrite { start: 1 });
    assert_eq!(error.to_string(), "a window of 2 rows at places 1 to 4 does not fit a cache of 2 rows and 3 places");
    let one = ids.narrow(0, 0, 1);
    assert!(matches!(refused(&mut cache, &one, CacheUse::Peek), ModelError::CacheMismatch { rows: 2, batch: 1, .. }));
    let long = Tensor::zeros([2, 62], (Kind::Int64, tch::Device::Cpu));
    assert!(matches!(
        refused(&mut cache, &long, CacheUse::Append),
        ModelError::SequenceTooLong { seq_len: 65, max_seq_len: 64 }
    ));
}
