//! Recorded cases: their tensors by name, and logits in the place of a network.

use dlm_diffusion::{
    BlockStart, Denoiser, DenoiserInput, DiffusionError, Head, PackingIsolation, predicting_positions_in,
};
use dlm_golden::{files, json, tensors};
use serde_json::Value;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// One recorded case.
pub(crate) struct Case<'a> {
    pub(crate) name: &'a str,
    pub(crate) json: &'a Value,
    tensors: &'a BTreeMap<String, Tensor>,
}

impl Case<'_> {
    pub(crate) fn get(&self, what: &str) -> Option<Tensor> {
        self.tensors.get(&format!("{}.{what}", self.name)).map(Tensor::shallow_clone)
    }

    pub(crate) fn tensor(&self, what: &str) -> Tensor {
        self.get(what).unwrap_or_else(|| panic!("{}: no {what}", self.name))
    }

    pub(crate) fn integer(&self, what: &str) -> i64 {
        self.json[what].as_i64().unwrap_or_else(|| panic!("{}: no {what}", self.name))
    }

    pub(crate) fn number(&self, what: &str) -> f64 {
        dlm_golden::number(&self.json[what]).unwrap_or_else(|| panic!("{}: no {what}", self.name))
    }

    pub(crate) fn flag(&self, what: &str) -> bool {
        self.json[what].as_bool().unwrap_or_else(|| panic!("{}: no {what}", self.name))
    }

    pub(crate) fn text(&self, what: &str) -> &str {
        self.json[what].as_str().unwrap_or_else(|| panic!("{}: no {what}", self.name))
    }
}

/// Visits every case of the files with that prefix that the reference did not refuse; at least one.
pub(crate) fn for_each_case(prefix: &str, mut visit: impl FnMut(&Case<'_>)) {
    let mut cases = 0;
    for path in files(prefix, "json") {
        let (file, tensors) = (json(&path), tensors(&path.with_extension("safetensors")));
        let list = file["cases"].as_array().or(file.as_array()).expect("cases");
        for json in list.iter().filter(|case| case.get("error").is_none()) {
            visit(&Case { name: json["name"].as_str().expect("a name"), json, tensors: &tensors });
            cases += 1;
        }
    }
    assert!(cases > 0, "no cases in {prefix}*");
}

/// Gives recorded logits, once it has checked that it is asked about the recorded tokens.
pub(crate) struct Recorded {
    pub(crate) logits: Tensor,
    /// What the model saw, and where that is to be compared (everywhere without).
    pub(crate) ids: Tensor,
    pub(crate) compared: Option<Tensor>,
    pub(crate) shifted: bool,
}

impl Denoiser for Recorded {
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> Result<Tensor, DiffusionError> {
        let differs = input.ids.ne_tensor(&self.ids);
        let differs = self.compared.as_ref().map_or_else(|| differs.shallow_clone(), |at| differs.logical_and(at));
        assert_eq!(
            differs.count_nonzero(None).int64_value(&[]),
            0,
            "the denoiser is given other tokens than the model saw"
        );
        let wanted = input.wanted.expect("wanted positions");
        let seq_len = input.ids.size()[1];
        let sources = if self.shifted {
            let (row, noisy) = (PackingIsolation::Row, BlockStart::Noisy);
            predicting_positions_in(wanted, seq_len, input.attention, row, noisy)?
        } else {
            wanted.shallow_clone()
        };
        // BD3-LM recorded the logits of the noised half alone.
        let of_row = self.logits.size()[1];
        let sources = &sources.floor_divide_scalar(seq_len) * of_row + sources.remainder(seq_len);
        Ok(self.logits.flatten(0, 1).index_select(0, &sources))
    }

    fn head(&self) -> &dyn Head {
        self
    }
}

impl Head for Recorded {
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, DiffusionError> {
        Ok(hidden.shallow_clone())
    }
}

/// Compares the gradients of recorded logits, as they are and relative to the largest.
pub(crate) fn assert_gradients(name: &str, logits: &Tensor, expected: &Tensor) {
    dlm_golden::assert_close(&format!("{name}: gradient"), &logits.grad(), expected, 1e-4, 1e-3);
    let scale = expected.abs().max();
    dlm_golden::assert_close(&format!("{name}: gradient"), &(logits.grad() / &scale), &(expected / &scale), 1e-5, 0.0);
}

/// Per-token negative log-likelihoods times weights laid out as the text is; 0 where nothing is masked.
pub(crate) fn laid_out(positions: &Tensor, values: &Tensor, shape: &[i64]) -> Tensor {
    let flat = Tensor::zeros([shape[0] * shape[1]], (Kind::Float, tch::Device::Cpu));
    flat.index_put(&[Some(positions)], values, false).view(shape)
}
