//! Dream's CART weights and the attention masks of block diffusion.

mod common;

use common::golden::for_each_case;
use dlm_diffusion::{AttentionLayout, Visibility, cart_weights};
use dlm_golden::{assert_close, files, tensors};
use tch::{Device, Kind};

#[test]
fn golden_cart_weights_are_ours_where_a_token_is_masked() {
    for_each_case("diffusion_weights_masks", |case| {
        let is_masked = case.tensor("masked").to_kind(Kind::Bool);
        let found = cart_weights(&is_masked, None, case.number("p"));
        assert_close(case.name, &found, &case.tensor("weights"), 1e-6, 1e-5);
    });
}

#[test]
fn golden_block_masks_are_those_of_noisy_and_clean_rows() {
    let mut compared = 0;
    for path in files("diffusion_weights_masks", "safetensors") {
        for (name, expected) in tensors(&path) {
            // block_mask_n10_b4: texts of 10 tokens in blocks of 4.
            let Some((seq_len, block_length)) =
                name.strip_prefix("block_mask_n").and_then(|rest| rest.split_once("_b"))
            else {
                continue;
            };
            let (seq_len, block_length) = (seq_len.parse().unwrap(), block_length.parse().unwrap());
            let visibility = Visibility::NoisyAndClean { block_length, seq_len };
            let mask =
                AttentionLayout::full().with_visibility(visibility).dense_mask(2 * seq_len, Device::Cpu).unwrap();
            dlm_golden::record(&name, 0.0);
            assert_eq!(mask.squeeze().to_kind(Kind::Uint8), expected, "{name}");
            compared += 1;
        }
    }
    assert!(compared > 0);
}
