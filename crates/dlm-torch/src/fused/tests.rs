//! Each loop against the chain of operators, on every level of instructions.

use super::*;
use crate::levels::at_every_level;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, CPU).to_kind(kind).set_requires_grad(true)
}

/// Largest difference as a share of the largest number.
fn expect_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let [found, expected] = [found, expected].map(|x| x.detach().to_kind(Kind::Double));
    let error = ((found - &expected).abs().max() / expected.abs().max().clamp_min(1e-6)).double_value(&[]);
    assert!(error <= tolerance, "{what}: differs by {error:e}");
}

/// Values and gradients, given random gradients of the values.
fn expect_equal(found: &[Tensor], expected: &[Tensor], inputs: &[&Tensor], tolerance: f64) {
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert_eq!(a.kind(), b.kind());
        expect_close(a, b, tolerance, &format!("value {i}"));
    }
    let weights: Vec<Tensor> = expected.iter().map(|x| Tensor::randn(x.size(), CPU)).collect();
    let loss = |values: &[Tensor]| {
        let sums = values.iter().zip(&weights).map(|(x, w)| (x * w).sum(Kind::Float));
        sums.reduce(|a, b| a + b).unwrap()
    };
    let grads = |values: &[Tensor]| Tensor::run_backward(&[loss(values)], inputs, false, false);
    for (i, (a, b)) in grads(found).iter().zip(&grads(expected)).enumerate() {
        assert_eq!(a.kind(), b.kind());
        expect_close(a, b, 2.0 * tolerance, &format!("gradient {i}"));
    }
}

fn tolerance(kind: Kind) -> f64 {
    if kind == Kind::Float { 2e-6 } else { 2e-2 }
}

#[test]
fn a_norm_of_a_sum_equals_the_chain_of_operators_in_every_mix_of_kinds() {
    at_every_level(|| {
        tch::manual_seed(1);
        let mixes = [
            (Kind::Float, Kind::Float, Kind::Float),
            (Kind::Float, Kind::BFloat16, Kind::Float),
            (Kind::BFloat16, Kind::BFloat16, Kind::Float),
            (Kind::BFloat16, Kind::BFloat16, Kind::BFloat16),
        ];
        for (sum_kind, kind, weight_kind) in mixes {
            let (x, delta, weight) = (random(&[50, 70], sum_kind), random(&[50, 70], kind), random(&[70], weight_kind));
            let both = |normed: Normed| [normed.sum, normed.normed];
            let found = both(norm(&x, Some(&delta), &weight, 1e-5, kind).unwrap());
            let expected = both(plain::norm(&x, Some(&delta), &weight, 1e-5, kind).unwrap());
            expect_equal(&found, &expected, &[&x, &delta, &weight], tolerance(kind));
            let found = norm(&x, None, &weight, 1e-5, kind).unwrap().normed;
            let expected = plain::norm(&x, None, &weight, 1e-5, kind).unwrap().normed;
            expect_equal(&[found], &[expected], &[&x, &weight], tolerance(kind));
        }
        assert!(norm(&random(&[2, 3], Kind::Float), None, &random(&[4], Kind::Float), 1e-5, Kind::Float).is_err());
    });
}

#[test]
fn swiglu_equals_the_chain_of_operators() {
    at_every_level(|| {
        tch::manual_seed(2);
        for kind in [Kind::Float, Kind::BFloat16] {
            let x = random(&[40, 2 * 33], kind);
            expect_equal(&[swiglu(&x).unwrap()], &[plain::swiglu(&x).unwrap()], &[&x], tolerance(kind));
        }
        // Where the sigmoid saturates there is neither infinity nor anything left of -200.
        let far = Tensor::cat(&[Tensor::from_slice(&[-200f32, 200.0]).repeat([40]), Tensor::ones([80], CPU)], 0);
        let found = swiglu(&far.unsqueeze(0)).unwrap();
        assert_eq!(Vec::<f32>::try_from(found.flatten(0, 1)).unwrap(), [0.0, 200.0].repeat(40));
        let nan = Tensor::from_slice(&[f32::NAN, 1.0]).view([1, 2]);
        assert!(swiglu(&nan).unwrap().double_value(&[0, 0]).is_nan());
    });
}

#[test]
fn silu_is_right_to_two_units_of_float32_wherever_it_does_not_vanish() {
    at_every_level(|| {
        let x = Tensor::linspace(-80.0, 80.0, 20_001, CPU);
        let found = swiglu(&Tensor::cat(&[x.shallow_clone(), x.ones_like()], 0).unsqueeze(0)).unwrap().squeeze_dim(0);
        let expected = x.to_kind(Kind::Double).silu();
        let error = (found.to_kind(Kind::Double) - &expected).abs() / expected.abs().clamp_min(1e-40);
        assert!(error.max().double_value(&[]) < 2.4e-7, "{error}");
    });
}

#[test]
fn turning_equals_the_chain_of_operators_for_common_and_for_own_positions() {
    at_every_level(|| {
        tch::manual_seed(3);
        let (batch, seq_len, heads, kv_heads, dim) = (3, 20, 6, 2, 8);
        for kind in [Kind::Float, Kind::BFloat16] {
            for positions in [seq_len, batch * seq_len] {
                let angles = Tensor::randn([positions, dim / 2], CPU);
                let angles = Angles { cos: angles.cos(), sin: angles.sin() };
                let tokens = random(&[batch * seq_len, (heads + 2 * kv_heads) * dim], kind);
                let found = rotate(&tokens, &angles, batch, heads, kv_heads).unwrap();
                let expected = plain::rotate(&tokens, &angles, batch, heads, kv_heads).unwrap();
                expect_equal(&found, &expected, &[&tokens], tolerance(kind));
            }
        }
    });
}

#[test]
fn joined_maps_equal_maps_one_by_one_and_float32_weights_get_float32_gradients() {
    tch::manual_seed(4);
    let whole = Tensor::randn([12, 16], CPU);
    let parts = |whole: &Tensor| [(0, 6), (6, 4), (10, 2)].map(|(at, rows)| whole.narrow(0, at, rows));
    let joined = parts(&whole).map(|part| part.detach().set_requires_grad(true));
    let apart = parts(&whole).map(|part| part.detach().copy().set_requires_grad(true));
    assert!(lie_joined(&joined).unwrap() && !lie_joined(&apart).unwrap());
    let x = random(&[9, 16], Kind::Float);
    let expected = |x: &Tensor, weights: &[Tensor]| {
        Tensor::cat(&weights.iter().map(|w| x.matmul(&w.tr().to_kind(x.kind()))).collect::<Vec<_>>(), 1)
    };
    for weights in [&joined, &apart] {
        let inputs: Vec<&Tensor> = std::iter::once(&x).chain(weights).collect();
        expect_equal(&[linears(&x, weights, None).unwrap()], &[expected(&x, weights)], &inputs, 1e-5);
    }
    let (half, copy) = (random(&[9, 16], Kind::BFloat16), whole.to_kind(Kind::BFloat16));
    let inputs: Vec<&Tensor> = std::iter::once(&half).chain(&joined).collect();
    expect_equal(&[linears(&half, &joined, Some(&copy)).unwrap()], &[expected(&half, &joined)], &inputs, 2e-2);
}

#[test]
fn tokens_that_fill_no_rows_or_heads_are_not_turned() {
    let angles = || Angles { cos: Tensor::ones([1, 4], CPU), sin: Tensor::ones([1, 4], CPU) };
    let turned = |tokens: i64, width, batch, heads, kv_heads| {
        rotate(&Tensor::ones([tokens, width], CPU), &angles(), batch, heads, kv_heads)
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    assert_eq!(turned(6, 32, 2, 2, 1), Ok(()));
    assert_eq!(turned(0, 32, 0, 2, 1), Ok(()));
    let not_rows = turned(7, 32, 2, 2, 1).unwrap_err();
    assert!(not_rows.contains("7 tokens are no 2 equally long rows"), "{not_rows}");
    for (tokens, width, batch, heads, kv_heads) in
        [(6, 32, 0, 2, 1), (6, 32, 4, 2, 1), (6, 32, -2, 2, 1), (6, 32, 2, 0, 0), (6, 32, 2, 4, 0), (6, 33, 2, 2, 1)]
    {
        assert!(turned(tokens, width, batch, heads, kv_heads).is_err(), "{tokens} {width} {batch} {heads} {kv_heads}");
    }
}

#[test]
fn no_matrices_and_copies_of_another_shape_are_refused() {
    assert!(lie_joined(&[]).unwrap_err().to_string().contains("no matrices"));
    let x = Tensor::ones([2, 4], CPU);
    assert!(linears(&x, &[], None).is_err());
    assert!(linears(&x, &[Tensor::ones([3, 4], CPU)], Some(&Tensor::ones([2, 4], CPU))).is_err());
}

fn heads(kind: Kind, seq_len: i64) -> [Tensor; 3] {
    [6, 2, 2].map(|heads| random(&[3, heads, seq_len, 16], kind))
}

#[test]
fn attention_equals_libtorchs() {
    tch::manual_seed(5);
    // The last is longer than the scores that are held at once.
    for (kind, seq_len) in [(Kind::Float, 40), (Kind::BFloat16, 40), (Kind::Float, 1500)] {
        let [q, k, v] = heads(kind, seq_len);
        let (found, expected) = (attention(&q, &k, &v, None).unwrap(), plain::attention(&q, &k, &v, None).unwrap());
        let tolerance = if kind == Kind::Float { 2e-5 } else { 3e-2 };
        expect_equal(&[found], &[expected], &[&q, &k, &v], tolerance);
    }
}

#[test]
fn gradients_of_keys_and_values_are_added_up_over_chunks_in_float32() {
    tch::manual_seed(7);
    // A dozen chunks. All numbers are alike but for a little, so that sums over queries grow and with them what adding up in
    // bfloat16 would lose.
    let like = |shape: [i64; 4]| (Tensor::randn(shape, CPU) * 0.3 + 1.0).to_kind(Kind::BFloat16);
    let inputs = [24, 1, 1].map(|heads| like([1, heads, 1450, 8]));
    let grad = like([1, 1450, 24, 8]).flatten(2, 3);
    let gradients = |kind: Kind| {
        let [q, k, v] = inputs.each_ref().map(|x| x.to_kind(kind).set_requires_grad(true));
        let out = attention(&q, &k, &v, None).unwrap();
        Tensor::run_backward(&[(out * grad.to_kind(kind)).sum(Kind::Float)], &[&k, &v], false, false)
    };
    let (found, expected) = (gradients(Kind::BFloat16), gradients(Kind::Float));
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!((found.kind(), found.size()), (Kind::BFloat16, expected.size()));
        let far = (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
        // Added up in bfloat16 they would be off by 5e-3; the last digit of bfloat16 alone makes 1.7e-3.
        assert!(far < 2.5e-3, "{far:e}");
    }
}

#[test]
fn attention_refuses_heads_that_do_not_fit() {
    let of = |heads: i64, len: i64, dim: i64| Tensor::ones([3, heads, len, dim], CPU);
    let attended = |q: &Tensor, k: &Tensor, v: &Tensor| attention(q, k, v, None).is_ok();
    let (q, k) = (of(6, 10, 4), of(2, 10, 4));
    assert!(attended(&q, &k, &k));
    for wrong in [of(0, 10, 4), of(4, 10, 4), of(2, 9, 4), of(2, 11, 4), of(2, 10, 3), k.get(0)] {
        assert!(!attended(&q, &wrong, &wrong), "{:?}", wrong.size());
    }
    assert!(!attended(&q, &k, &of(2, 10, 3)));
}

#[test]
fn a_piece_without_queries_or_without_keys_changes_no_gradient() {
    tch::manual_seed(8);
    let [q, k, v] = heads(Kind::Float, 10);
    let gradients = |pieces: &[[i64; 7]]| {
        let table = Tensor::from_slice(&pieces.concat()).view([pieces.len() as i64, 7]);
        let out = attention(&q, &k, &v, Some(&table)).unwrap();
        // Memory that is taken and not written would most likely be this.
        drop((0..9).map(|_| Tensor::full([2, 10, 16], f64::NAN, CPU)).collect::<Vec<_>>());
        Tensor::run_backward(&[out.square().sum(Kind::Float)], &[&q, &k, &v], false, false)
    };
    let expected = gradients(&[[1, 0, 10, 0, 10, 0, 0]]);
    assert_eq!(gradients(&[[1, 0, 10, 0, 10, 0, 0], [1, 10, 0, 0, 10, 0, 0], [2, 0, 10, 3, 0, 0, 0]]), expected);
}

#[test]
fn pieces_of_attention_equal_a_mask_and_tokens_outside_get_zero() {
    at_every_level(|| {
        tch::manual_seed(6);
        // Row 0: two documents and two tokens of padding. Rows 1 and 2 by one piece with two ranges of keys each.
        let pieces = [
            [0, 0, 5, 0, 5, 0, 0],
            [0, 5, 3, 5, 3, 0, 0],
            [1, 0, 10, 0, 2, 6, 4],
            [2, 2, 4, 2, 4, 8, 2],
            [2, 6, 4, 0, 10, 0, 0],
        ];
        let mask = Tensor::zeros([3, 1, 10, 10], (Kind::Bool, Device::Cpu));
        for [row, query, queries, key, keys, more, mores] in pieces {
            for (key, keys) in [(key, keys), (more, mores)] {
                let _ = mask.get(row).narrow(1, query, queries).narrow(2, key, keys).fill_(1);
            }
        }
        let table = Tensor::from_slice(&pieces.concat()).view([5, 7]);
        for kind in [Kind::Float, Kind::BFloat16] {
            let [q, k, v] = heads(kind, 10);
            let found = attention(&q, &k, &v, Some(&table)).unwrap();
            // Rows without a key are no rows of a softmax.
            let seen = mask.any_dim(3, false).squeeze_dim(1).unsqueeze(2); // [batch, seq_len, 1]
            let expected = plain::attention(&q, &k, &v, Some(&mask))
                .unwrap()
                .where_self(&seen, &Tensor::zeros([1], (kind, Device::Cpu)));
            assert_eq!(found.get(0).narrow(0, 8, 2).abs().max().double_value(&[]), 0.0);
            let tolerance = if kind == Kind::Float { 1e-5 } else { 3e-2 };
            expect_equal(&[found], &[expected], &[&q, &k, &v], tolerance);
        }
    });
}

#[test]
fn plain_operators_are_taken_to_the_bit_where_they_are_asked_for_and_only_there() {
    tch::manual_seed(9);
    let (x, weight) = (Tensor::randn([64, 70], CPU), Tensor::randn([70], CPU));
    let normed = || norm(&x, None, &weight, 1e-5, Kind::Float).unwrap().normed;
    let [q, k, v] = [9, 3, 3].map(|heads| Tensor::randn([2, heads, 40, 64], CPU));
    let mixed = || attention(&q, &k, &v, None).unwrap();
    let expected = plain::norm(&x, None, &weight, 1e-5, Kind::Float).unwrap().normed;
    assert_eq!(with_plain_operators(normed), expected);
    assert_eq!(with_plain_operators(|| swiglu(&x).unwrap()), plain::swiglu(&x).unwrap());
    assert_eq!(with_plain_operators(mixed), plain::attention(&q, &k, &v, None).unwrap());
    // Another order of adding up has other last bits.
    assert_ne!(mixed(), plain::attention(&q, &k, &v, None).unwrap());
    assert!(std::panic::catch_unwind(|| with_plain_operators(|| panic!("in the middle"))).is_err());
    assert!(is_fused(&x));
}
