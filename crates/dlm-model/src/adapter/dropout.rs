//! Dropout as a function: which numbers are dropped follows from the token, the adapter and nothing else.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use tch::{Kind, TchError, Tensor};

/// 0 where a number is dropped, `1 / (1 - p)` where it stays, `[n, width]`.
///
/// `keys`, `[n]` of `Int64`, is a number for each token; equal ones drop the same. So the mask is repeated by a recomputation and
/// by a resumed run, and depends neither on packing nor on the other tokens of a batch.
pub(crate) fn mask(keys: &Tensor, adapter: u64, width: i64, p: f64, kind: Kind) -> Result<Tensor, TchError> {
    let device = keys.device();
    let keys = Vec::<i64>::try_from(keys)?;
    let width_usize = width as usize;
    let bar = (p * f64::from(u32::MAX)) as u32;
    let kept = (1.0 / (1.0 - p)) as f32;
    let mut values = Vec::with_capacity(keys.len() * width_usize);
    for key in &keys {
        let mut generator = ChaCha8Rng::seed_from_u64(key.cast_unsigned());
        generator.set_stream(adapter);
        values.extend((0..width_usize).map(|_| if generator.next_u32() < bar { 0.0 } else { kept }));
    }
    Tensor::f_from_slice(&values)?.f_view([keys.len() as i64, width])?.f_to_kind(kind)?.f_to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_dropped_by_token_and_adapter_and_the_rest_keeps_the_mean() {
        let keys = Tensor::from_slice(&[5i64, 6, 5]);
        let draw = |adapter| mask(&keys, adapter, 20_000, 0.25, Kind::Float).unwrap();
        let x = draw(3);
        assert_eq!(x.get(0), x.get(2));
        assert_ne!(x.get(0), x.get(1));
        assert_ne!(x.get(0), draw(4).get(0));
        let mean = x.mean(Kind::Double).double_value(&[]);
        let dropped = x.eq(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        // Four standard deviations of 40000 draws.
        assert!((dropped - 0.25).abs() < 4.0 * (0.25f64 * 0.75 / 40_000.0).sqrt(), "{dropped}");
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
    }
}
