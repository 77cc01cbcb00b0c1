//! The chunked loss against the plain one on every level of instructions, and the optimiser's step.

use super::*;
use crate::levels::at_every_level;
use tch::{Device, Kind, Reduction};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const PLAIN: CrossEntropyOptions = CrossEntropyOptions { label_smoothing: 0.0, z_loss: 0.0, forbidden: None };

fn close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    let error = (found - expected).abs().max().double_value(&[]);
    assert!(error <= tolerance, "differs by {error:e}");
}

#[test]
fn a_chunked_loss_and_its_gradients_equal_the_plain_ones() {
    at_every_level(|| {
        tch::manual_seed(1);
        let (n, vocab, width) = (37, 101, 16);
        let hidden = Tensor::randn([n, width], CPU).set_requires_grad(true);
        let weight = Tensor::randn([vocab, width], CPU).set_requires_grad(true);
        let targets = Tensor::randint(vocab, [n], (Kind::Int64, Device::Cpu));
        let weights = Tensor::rand([n], CPU);

        let logits = hidden.matmul(&weight.tr());
        let nll = logits.cross_entropy_loss::<Tensor>(&targets, None, Reduction::None, -100, 0.0);
        let plain = (&nll * &weights).sum(Kind::Float) * 3.0;
        let expected = Tensor::run_backward(&[&plain], &[&hidden, &weight], false, false);
        for (chunk_len, is_fused) in [(1, true), (8, true), (1000, true), (8, false)] {
            let found = cross_entropy(&hidden, &weight, None, &targets, &weights, chunk_len, &PLAIN, is_fused).unwrap();
            close(&found.nll, &nll, 1e-5);
            assert_eq!(found.argmax, logits.argmax(1, false));
            let loss = &found.weighted_sum * 3.0;
            close(&loss, &plain, 1e-4);
            let grads = Tensor::run_backward(&[&loss], &[&hidden, &weight], false, false);
            close(&grads[0], &expected[0], 1e-5);
            close(&grads[1], &expected[1], 1e-4);
        }
    });
}

#[test]
fn smoothing_z_loss_and_a_forbidden_token_have_the_loss_and_gradients_of_their_formulas() {
    at_every_level(|| {
        tch::manual_seed(2);
        let (n, vocab, width, forbidden) = (9, 23, 8, 4i64);
        let hidden = Tensor::randn([n, width], CPU).set_requires_grad(true);
        let weight = Tensor::randn([vocab, width], CPU).set_requires_grad(true);
        let targets = Tensor::randint(3, [n], (Kind::Int64, Device::Cpu));
        let weights = Tensor::rand([n], CPU);
        let kept: Vec<i64> = (0..vocab).filter(|&v| v != forbidden).collect();
        for (label_smoothing, z_loss, is_forbidden) in
            [(0.2, 0.0, false), (0.0, 0.3, false), (0.0, 0.0, true), (0.2, 0.3, true)]
        {
            let logits = hidden.matmul(&weight.tr());
            let logits = if is_forbidden { logits.index_select(1, &Tensor::from_slice(&kept)) } else { logits };
            let log_sum = logits.logsumexp([1i64].as_slice(), false);
            // Targets are below the forbidden token, so their column is the same without it.
            let nll = &log_sum - logits.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
            let mean = &log_sum - logits.mean_dim([1i64].as_slice(), false, Kind::Float);
            let loss = &nll * (1.0 - label_smoothing) + mean * label_smoothing + log_sum.square() * z_loss;
            let plain = (loss * &weights).sum(Kind::Float);
            let expected = Tensor::run_backward(&[&plain], &[&hidden, &weight], false, false);
            let options = CrossEntropyOptions { label_smoothing, z_loss, forbidden: is_forbidden.then_some(forbidden) };
            for is_fused in [true, false] {
                let found = cross_entropy(&hidden, &weight, None, &targets, &weights, 4, &options, is_fused).unwrap();
                close(&found.weighted_sum, &plain, 1e-4);
                close(&found.nll, &nll, 1e-5);
                let grads = Tensor::run_backward(&[&found.weighted_sum], &[&hidden, &weight], false, false);
                close(&grads[0], &expected[0], 1e-4);
                close(&grads[1], &expected[1], 1e-4);
            }
        }
    });
}

#[test]
fn a_frozen_head_still_passes_gradients_to_the_states() {
    let hidden = Tensor::ones([2, 3], CPU).set_requires_grad(true);
    let weight = Tensor::eye(3, CPU);
    let targets = Tensor::from_slice(&[0i64, 2]);
    let scores = linear_cross_entropy(&hidden, &weight, None, &targets, &Tensor::ones([2], CPU), 1, &PLAIN).unwrap();
    scores.weighted_sum.backward();
    // softmax of equal scores is 1/3 each: the gradient is 1/3 - one_hot(target).
    let third = 1.0 / 3.0;
    let expected = Tensor::from_slice2(&[[third - 1.0, third, third], [third, third, third - 1.0]]);
    close(&hidden.grad(), &expected.to_kind(Kind::Float), 1e-6);
}

#[test]
fn no_states_give_a_loss_of_zero_with_a_graph() {
    let hidden = Tensor::zeros([0, 3], CPU).set_requires_grad(true);
    let weight = Tensor::ones([5, 3], CPU).set_requires_grad(true);
    let targets = Tensor::zeros([0], (Kind::Int64, Device::Cpu));
    let scores = linear_cross_entropy(&hidden, &weight, None, &targets, &Tensor::zeros([0], CPU), 8, &PLAIN).unwrap();
    assert_eq!(scores.weighted_sum.double_value(&[]), 0.0);
    scores.weighted_sum.backward();
    assert_eq!(weight.grad().abs().max().double_value(&[]), 0.0);
}

#[test]
fn a_float32_weight_with_a_bfloat16_copy_gets_a_float32_gradient_near_the_exact_one() {
    at_every_level(|| {
        tch::manual_seed(3);
        let hidden = Tensor::randn([40, 16], CPU).to_kind(Kind::BFloat16).set_requires_grad(true);
        let weight = Tensor::randn([101, 16], CPU).set_requires_grad(true);
        let copy = weight.detach().to_kind(Kind::BFloat16);
        let targets = Tensor::randint(101, [40], (Kind::Int64, Device::Cpu));
        let weights = Tensor::rand([40], CPU);
        let found = linear_cross_entropy(&hidden, &weight, Some(&copy), &targets, &weights, 8, &PLAIN).unwrap();
        let grads = Tensor::run_backward(&[&found.weighted_sum], &[&hidden, &weight], false, false);
        assert_eq!((grads[0].kind(), grads[1].kind()), (Kind::BFloat16, Kind::Float));
        let exact_hidden = hidden.detach().to_kind(Kind::Float).set_requires_grad(true);
        let exact = linear_cross_entropy(&exact_hidden, &weight, None, &targets, &weights, 8, &PLAIN).unwrap();
        let expected = Tensor::run_backward(&[&exact.weighted_sum], &[&exact_hidden, &weight], false, false);
        for (found, expected) in grads.iter().zip(&expected) {
            let error = (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
            assert!(error < 0.02, "{error}");
        }
    });
}

#[test]
fn a_target_beyond_the_vocabulary_is_an_error() {
    let targets = Tensor::from_slice(&[7i64]);
    let scores = linear_cross_entropy(
        &Tensor::ones([1, 2], CPU),
        &Tensor::ones([3, 2], CPU),
        None,
        &targets,
        &Tensor::ones([1], CPU),
        8,
        &PLAIN,
    );
    assert!(matches!(scores, Err(TorchError::Libtorch { operation: "linear_cross_entropy", .. })));
}

#[test]
fn a_gradient_that_is_added_up_a_few_rows_at_a_time_has_every_row_once() {
    tch::manual_seed(4);
    // So wide that 64 rows are added at a time, and in two chunks of states.
    let (n, vocab, width) = (5, 150, 70_000);
    let hidden = Tensor::randn([n, width], CPU).to_kind(Kind::BFloat16).set_requires_grad(true);
    let weight = (Tensor::randn([vocab, width], CPU) * 0.01).set_requires_grad(true);
    let copy = weight.detach().to_kind(Kind::BFloat16);
    let targets = Tensor::from_slice(&[0i64, 70, 149, 64, 63]);
    let weights = Tensor::from_slice(&[1.0f32, 0.5, 2.0, 1.0, 0.25]);
    for is_fused in [true, false] {
        let found = cross_entropy(&hidden, &weight, Some(&copy), &targets, &weights, 3, &PLAIN, is_fused).unwrap();
        let grad = Tensor::run_backward(&[&found.weighted_sum], &[&weight], false, false).remove(0);
        let scores = hidden.detach().matmul(&copy.tr()).to_kind(Kind::Float);
        let rows = Tensor::zeros([n, vocab], CPU).scatter_value(1, &targets.unsqueeze(1), 1.0);
        let of_scores = (scores.softmax(1, Kind::Float) - rows) * weights.unsqueeze(1);
        let expected = of_scores.tr().matmul(&hidden.detach().to_kind(Kind::Float));
        let error = (grad - &expected).norm_scalaropt_dim(2, [1i64].as_slice(), false)
            / expected.norm_scalaropt_dim(2, [1i64].as_slice(), false).clamp_min(1e-3);
        assert!(error.max().double_value(&[]) < 0.02, "{error}");
    }
}

#[test]
fn a_copy_of_another_shape_or_kind_and_lists_of_another_length_are_errors() {
    let loss = |weight: &[i64], copy: Option<Tensor>, targets: i64, weights: i64| {
        let hidden = Tensor::ones([4, 2], CPU).set_requires_grad(true);
        let weight = Tensor::ones(weight, CPU).set_requires_grad(true);
        let (targets, weights) = (Tensor::zeros([targets], (Kind::Int64, Device::Cpu)), Tensor::ones([weights], CPU));
        [true, false].map(|is_fused| {
            cross_entropy(&hidden, &weight, copy.as_ref(), &targets, &weights, 8, &PLAIN, is_fused).is_ok()
        })
    };
    let copy = |shape: &[i64], kind: Kind| Some(Tensor::ones(shape, CPU).to_kind(kind));
    assert_eq!(loss(&[3, 2], copy(&[3, 2], Kind::Float), 4, 4), [true; 2]);
    for shape in [[2, 2], [4, 2], [3, 1], [1, 2]] {
        assert_eq!(loss(&[3, 2], copy(&shape, Kind::Float), 4, 4), [false; 2], "{shape:?}");
    }
    for kind in [Kind::BFloat16, Kind::Double, Kind::Int64] {
        assert_eq!(loss(&[3, 2], copy(&[3, 2], kind), 4, 4), [false; 2], "{kind:?}");
    }
    assert_eq!(loss(&[3, 1], None, 4, 4), [false; 2]);
    for (targets, weights) in [(5, 4), (3, 4), (4, 5), (4, 1)] {
        assert_eq!(loss(&[3, 2], None, targets, weights), [false; 2], "{targets} and {weights}");
    }
}

#[test]
fn a_first_adamw_step_moves_by_the_learning_rate_and_the_decay() {
    let (param, grad) = (Tensor::full([4], 2.0, CPU), Tensor::full([4], 0.5, CPU));
    let (m, v, step) = (Tensor::zeros([4], CPU), Tensor::zeros([4], CPU), Tensor::zeros([1], CPU).squeeze());
    let options = AdamWStep { lr: 0.1, beta1: 0.9, beta2: 0.999, weight_decay: 0.01, eps: 1e-8 };
    let list = |tensor: &Tensor| vec![tensor.shallow_clone()];
    fused_adamw(&list(&param), &list(&grad), &list(&m), &list(&v), &list(&step), &options).unwrap();
    // After bias correction the first step is lr * sign(grad), after 2.0 * (1 - lr * weight_decay).
    close(&param, &Tensor::full([4], 2.0 * (1.0 - 0.001) - 0.1, CPU), 1e-6);
    assert_eq!(step.double_value(&[]), 1.0);
    assert!(matches!(
        fused_adamw(&list(&param), &[], &list(&m), &list(&v), &list(&step), &options),
        Err(TorchError::UnequalLists { name: "grads", found: 0, expected: 1 })
    ));
}

#[test]
fn cleared_gradients_are_gone_and_the_next_ones_are_not_added_to_them() {
    let param = Tensor::ones([3], CPU).set_requires_grad(true);
    for _ in 0..2 {
        (&param * 2.0).sum(Kind::Float).backward();
        assert_eq!(param.grad(), Tensor::full([3], 2.0, CPU));
        clear_gradients(&[param.shallow_clone()]).unwrap();
        assert!(!param.grad().defined());
    }
}

#[test]
fn clipping_tells_the_norm_from_before_and_leaves_the_norm_asked_for() {
    let grads = [Tensor::full([9], 1.0, CPU), Tensor::full([16], 1.0, CPU)];
    assert_eq!(clip_grad_norm(&grads, 0.0).unwrap(), 5.0);
    assert_eq!(clip_grad_norm(&grads, 1.0).unwrap(), 5.0);
    assert!((clip_grad_norm(&grads, 0.0).unwrap() - 1.0).abs() < 1e-6);
    assert!((clip_grad_norm(&grads, 2.0).unwrap() - 1.0).abs() < 1e-6);
}
