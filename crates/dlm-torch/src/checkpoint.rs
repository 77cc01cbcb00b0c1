//! Activation checkpointing: memory for time.

use crate::{
    additions::{check, pointers, taken},
    error::Result,
};
use std::{
    ffi::{CString, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
};
use tch::{TchError, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn dlm_torch_set_error(message: *const c_char);
    fn dlm_checkpoint(
        inputs: *const *const C_tensor,
        count: usize,
        call: unsafe extern "C" fn(*mut c_void, *const *const C_tensor, usize, *mut *mut C_tensor) -> c_int,
        drop: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
        outputs: usize,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

type Function = dyn Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, TchError>;

/// What is called with detached inputs, once forward and once more backward.
struct Closure {
    function: Box<Function>,
    /// How many tensors it has to give.
    outputs: usize,
}

/// Calls `closure` on one or two `inputs` and keeps none of its activations: the backward pass calls it again.
///
/// Gradients flow to the inputs and to whatever parameters the closure uses. It must give the same both times, so randomness in it
/// has to follow from something that it keeps. It is dropped with the graph.
///
/// Where nothing needs a gradient this is a plain call.
///
/// # Errors
/// [`TorchError::Libtorch`](crate::TorchError::Libtorch) with what the closure failed with, and when it gives another number of tensors than
/// `outputs`; a panic in it is such a failure.
pub fn checkpoint(
    inputs: &[Tensor],
    outputs: usize,
    closure: impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, TchError> + 'static,
) -> Result<Vec<Tensor>> {
    let closure = Box::new(Closure { function: Box::new(closure), outputs });
    let mut out = vec![std::ptr::null_mut(); outputs];
    // SAFETY: the inputs outlive the call; the C++ side owns the closure from here on and drops it once; on success `out` holds
    // tensors that are ours.
    unsafe {
        let data = Box::into_raw(closure).cast::<c_void>();
        let inputs = pointers(inputs);
        let code = dlm_checkpoint(inputs.as_ptr(), inputs.len(), call, drop_closure, data, outputs, out.as_mut_ptr());
        check(code, "checkpoint")?;
        Ok(out.into_iter().map(|pointer| taken(pointer)).collect())
    }
}

unsafe extern "C" fn call(
    data: *mut c_void,
    inputs: *const *const C_tensor,
    count: usize,
    out: *mut *mut C_tensor,
) -> c_int {
    let run = || {
        // SAFETY: `data` is the closure of `checkpoint`, and `inputs` are `count` tensors that outlive the call.
        let (closure, inputs) = unsafe { (&*data.cast::<Closure>(), slice::from_raw_parts(inputs, count)) };
        // SAFETY: as above; each becomes another handle of the same tensor.
        let inputs: Vec<Tensor> =
            inputs.iter().map(|&pointer| unsafe { Tensor::clone_from_ptr(pointer.cast_mut()) }).collect();
        let outputs = (closure.function)(&inputs).map_err(|error| error.to_string())?;
        if outputs.len() != closure.outputs {
            return Err(format!("it gave {} tensors and not {}", outputs.len(), closure.outputs));
        }
        Ok(outputs)
    };
    let failure = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(outputs)) => {
            for (i, output) in outputs.iter().enumerate() {
                // SAFETY: there is a slot for each output, as many as were counted above; the C++ side frees the new handle.
                unsafe { *out.add(i) = torch_sys::at_shallow_clone(output.as_ptr().cast_mut()) };
            }
            return 0;
        }
        Ok(Err(message)) => message,
        Err(_) => "it panicked".to_owned(),
    };
    let message = CString::new(failure.replace('\0', " ")).expect("there is no zero byte left");
    // SAFETY: the message is copied.
    unsafe { dlm_torch_set_error(message.as_ptr()) };
    1
}

unsafe extern "C" fn drop_closure(data: *mut c_void) {
    // SAFETY: `data` comes from `Box::into_raw` in `checkpoint`, and this is called once.
    drop(unsafe { Box::from_raw(data.cast::<Closure>()) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, rc::Rc};
    use tch::{Device, Kind};

    #[test]
    fn gradients_equal_those_without_and_the_closure_is_called_twice_and_dropped() {
        tch::manual_seed(1);
        let weight = Tensor::randn([4, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let x = Tensor::randn([3, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let y = Tensor::randn([3, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let layer = |x: &Tensor, y: &Tensor, weight: &Tensor| {
            let h = (x + y).tanh().matmul(weight);
            (h.sigmoid(), h * y)
        };
        let (a, b) = layer(&x, &y, &weight);
        let plain = (a * 2.0 + b).sum(Kind::Float);
        let expected = Tensor::run_backward(&[&plain], &[&x, &y, &weight], false, false);

        let calls = Rc::new(Cell::new(0));
        let (counted, inner) = (Rc::clone(&calls), weight.shallow_clone());
        let inputs = [x.shallow_clone(), y.shallow_clone()];
        let outputs = checkpoint(&inputs, 2, move |inputs| {
            counted.set(counted.get() + 1);
            let (a, b) = layer(&inputs[0], &inputs[1], &inner);
            Ok(vec![a, b])
        });
        let [a, b] = outputs.unwrap().try_into().unwrap();
        let loss = (a * 2.0 + b).sum(Kind::Float);
        assert_eq!((calls.get(), loss.double_value(&[])), (1, plain.double_value(&[])));
        loss.backward();
        for (found, expected) in [&x, &y, &weight].into_iter().zip(&expected) {
            assert_eq!(&found.grad(), expected);
        }
        drop(loss);
        assert_eq!((calls.get(), Rc::strong_count(&calls)), (2, 1));
    }

    #[test]
    fn parameters_inside_have_gradients_where_the_input_needs_none() {
        let weight = Tensor::ones([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let inner = weight.shallow_clone();
        let x = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
        let y = checkpoint(&[x], 1, move |x| Ok(vec![x[0].f_matmul(&inner)?])).unwrap();
        y[0].sum(Kind::Float).backward();
        assert_eq!(weight.grad(), Tensor::ones([2, 2], (Kind::Float, Device::Cpu)));
    }

    #[test]
    fn a_failure_or_a_panic_inside_is_an_error_with_its_reason() {
        let x = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
        let failed = checkpoint(&[x.shallow_clone()], 1, |x| Ok(vec![x[0].f_matmul(&x[0])?]));
        assert!(failed.unwrap_err().to_string().contains("mat1 and mat2"));
        let panicked = checkpoint(&[x.shallow_clone()], 1, |x| Ok(vec![x[7].shallow_clone()]));
        assert!(panicked.unwrap_err().to_string().contains("it panicked"));
    }

    #[test]
    fn another_number_of_outputs_than_was_told_is_an_error_forward_and_backward() {
        let x = Tensor::ones([1, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let of = |x: &[Tensor], count: usize| Ok((0..count).map(|_| &x[0] * 2.0).collect());
        for (told, given) in [(2, 1), (1, 2), (1, 0), (1, 1000)] {
            let failed = checkpoint(&[x.shallow_clone()], told, move |x| of(x, given)).unwrap_err().to_string();
            assert!(failed.ends_with(&format!("it gave {given} tensors and not {told}")), "{failed}");
        }
        let calls = Cell::new(0);
        let changing = move |x: &[Tensor]| {
            calls.set(calls.get() + 1);
            of(x, calls.get())
        };
        let y = checkpoint(&[x], 1, changing).unwrap().remove(0);
        let failed = y.sum(Kind::Float).f_backward().unwrap_err().to_string();
        assert!(failed.contains("it gave 2 tensors and not 1"), "{failed}");
    }
}
