//! AdamW: which parameters decay, one step over all of them, and a state that is saved and restored to the bit.

use crate::error::{Result, TrainError};
use dlm_torch::AdamWStep;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};
use tch::{Device, Kind, Tensor, no_grad};

/// Settings of [`AdamW`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a matrix that is subtracted per unit of learning rate.
    pub weight_decay: f64,
    /// Largest joint 2-norm of all gradients; longer ones are scaled down to it. `None` leaves them as they are.
    pub max_grad_norm: Option<f64>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: Some(1.0) }
    }
}

impl OptimizerConfig {
    /// Refuses numbers outside their ranges.
    ///
    /// # Errors
    /// [`TrainError::Setting`] with the value.
    pub fn validate(&self) -> Result<()> {
        let share = |v: f64| (0.0..1.0).contains(&v);
        crate::config::expect("adam_beta1", self.beta1, "at least 0 and below 1", share)?;
        crate::config::expect("adam_beta2", self.beta2, "at least 0 and below 1", share)?;
        crate::config::expect("adam_epsilon", self.eps, "above 0", |v| v > 0.0)?;
        crate::config::expect("weight_decay", self.weight_decay, "at least 0", |v| v >= 0.0 && v.is_finite())?;
        if let Some(max) = self.max_grad_norm {
            crate::config::expect("max_grad_norm", max, "above 0", |v| v > 0.0)?;
        }
        Ok(())
    }
}

/// AdamW ([arXiv:1711.05101](https://arxiv.org/abs/1711.05101)) over named parameters, in two groups as transformers makes them.
///
/// Every matrix decays, embeddings and output head included; norms and biases do not. The work is done by libtorch's fused
/// kernel, which wants parameter, gradient and moments of one kind: a model in bfloat16 has its moments in bfloat16.
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    groups: Vec<Group>,
}

/// Parameters that share a weight decay; all lists run parallel.
#[derive(Debug)]
struct Group {
    weight_decay: f64,
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    steps: Vec<Tensor>,
}

impl AdamW {
    /// Begins with moments of 0. The tensors are shared with the model, not copied.
    #[must_use]
    pub fn new(parameters: &[(String, Tensor)], config: &OptimizerConfig) -> Self {
        // Who makes an optimiser is going to repeat steps.
        dlm_torch::keep_freed_memory();
        let group = |weight_decay: f64, decays: bool| {
            let members: Vec<_> = parameters.iter().filter(|(name, p)| is_decayed(name, p) == decays).collect();
            let zeros = || members.iter().map(|(_, p)| p.detach().zeros_like()).collect();
            Group {
                weight_decay,
                names: members.iter().map(|(name, _)| name.clone()).collect(),
                params: members.iter().map(|(_, p)| p.shallow_clone()).collect(),
                exp_avgs: zeros(),
                exp_avg_sqs: zeros(),
                steps: members.iter().map(|(_, p)| Tensor::zeros([], (Kind::Float, p.device()))).collect(),
            }
        };
        Self { groups: vec![group(config.weight_decay, true), group(0.0, false)], config: config.clone() }
    }

    /// The names of the parameters that decay.
    pub fn decayed(&self) -> impl Iterator<Item = &str> {
        self.groups[0].names.iter().map(String::as_str)
    }

    /// Forgets the gradients of the step before.
    ///
    /// # Errors
    /// [`TrainError::Addition`] when libtorch fails.
    pub fn zero_grad(&mut self) -> Result<()> {
        Ok(self.groups.iter().try_for_each(|group| dlm_torch::clear_gradients(&group.params))?)
    }

    /// Clips the gradients as [`OptimizerConfig::max_grad_norm`] says and gives the joint 2-norm that they had before.
    ///
    /// # Errors
    /// [`TrainError::Torch`] or [`TrainError::Addition`] when libtorch fails.
    pub fn clip_gradients(&mut self) -> Result<f64> {
        let gradients: Vec<Tensor> = self.groups.iter().flat_map(|group| &group.params).map(gradient).collect();
        // A largest norm of 0 means "measure only" there.
        Ok(dlm_torch::clip_grad_norm(&gradients, self.config.max_grad_norm.unwrap_or(0.0))?)
    }

    /// Changes the parameters by their gradients at rate `lr`; a parameter without a gradient counts as one with zeros.
    ///
    /// # Errors
    /// [`TrainError::Addition`] when libtorch fails.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let OptimizerConfig { beta1, beta2, eps, .. } = self.config;
        for group in &self.groups {
            let gradients: Vec<Tensor> = group.params.iter().map(gradient).collect();
            let options = AdamWStep { lr, beta1, beta2, weight_decay: group.weight_decay, eps };
            no_grad(|| {
                let Group { params, exp_avgs, exp_avg_sqs, steps, .. } = group;
                dlm_torch::fused_adamw(params, &gradients, exp_avgs, exp_avg_sqs, steps, &options)
            })?;
        }
        Ok(())
    }

    /// Writes moments and step counts to one safetensors file: `<parameter>.exp_avg`, `.exp_avg_sq` and `.step`.
    ///
    /// # Errors
    /// [`TrainError::OptimizerState`] when the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let state: Vec<(String, Tensor)> =
            self.state().into_iter().map(|(name, tensor)| (name, tensor.to_device(Device::Cpu).contiguous())).collect();
        Tensor::write_safetensors(&state, path)
            .map_err(|source| TrainError::OptimizerState { path: path.to_owned(), reason: source.to_string() })
    }

    /// Takes moments and step counts from a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`TrainError::OptimizerState`] when the file cannot be read or was saved for other parameters.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let fail = |reason: String| TrainError::OptimizerState { path: path.to_owned(), reason };
        let saved = Tensor::read_safetensors(path).map_err(|error| fail(error.to_string()))?;
        let mut saved: BTreeMap<String, Tensor> = saved.into_iter().collect();
        for (name, mut tensor) in self.state() {
            let found = saved.remove(&name).ok_or_else(|| fail(format!("`{name}` is missing")))?;
            if (found.size(), found.kind()) != (tensor.size(), tensor.kind()) {
                let (size, kind) = (tensor.size(), tensor.kind());
                let message = format!("`{name}` is {:?} of {:?}, not {size:?} of {kind:?}", found.size(), found.kind());
                return Err(fail(message));
            }
            no_grad(|| tensor.f_copy_(&found))?;
        }
        match saved.into_keys().next() {
            Some(name) => Err(fail(format!("`{name}` belongs to no parameter of the model"))),
            None => Ok(()),
        }
    }

    /// All state by name; the tensors are shared.
    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for group in &self.groups {
            for (i, name) in group.names.iter().enumerate() {
                state.push((format!("{name}.exp_avg"), group.exp_avgs[i].shallow_clone()));
                state.push((format!("{name}.exp_avg_sq"), group.exp_avg_sqs[i].shallow_clone()));
                state.push((format!("{name}.step"), group.steps[i].shallow_clone()));
            }
        }
        state
    }
}

/// Whether a parameter decays. Norms and biases are the vectors of a transformer; the names guard against exotic shapes.
fn is_decayed(name: &str, parameter: &Tensor) -> bool {
    parameter.dim() >= 2 && !name.ends_with("bias") && !name.contains("norm")
}

/// The gradient of a parameter; zeros when nothing flowed to it.
fn gradient(parameter: &Tensor) -> Tensor {
    let gradient = parameter.grad();
    if gradient.defined() { gradient } else { parameter.detach().zeros_like() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Vec<(String, Tensor)> {
        let matrix = Tensor::from_slice2(&[[1f32, -2.0], [0.5, 3.0]]).set_requires_grad(true);
        let norm = Tensor::from_slice(&[1f32, 1.0]).set_requires_grad(true);
        vec![("proj.weight".to_owned(), matrix), ("norm.weight".to_owned(), norm)]
    }

    fn descend(parameters: &[(String, Tensor)], optimizer: &mut AdamW, steps: usize) {
        for _ in 0..steps {
            optimizer.zero_grad().unwrap();
            let loss = (parameters[0].1.square().sum(Kind::Float) + parameters[1].1.sum(Kind::Float)) * 0.5;
            loss.backward();
            optimizer.clip_gradients().unwrap();
            optimizer.step(0.1).unwrap();
        }
    }

    fn values(parameters: &[(String, Tensor)]) -> Vec<f32> {
        parameters.iter().flat_map(|(_, p)| Vec::<f32>::try_from(&p.detach().flatten(0, -1)).unwrap()).collect()
    }

    #[test]
    fn a_first_step_moves_by_the_rate_and_decays_only_matrices() {
        let parameters = parameters();
        let config = OptimizerConfig { weight_decay: 0.5, max_grad_norm: None, ..OptimizerConfig::default() };
        let mut optimizer = AdamW::new(&parameters, &config);
        descend(&parameters, &mut optimizer, 1);
        // p (1 - lr decay) - lr sign(g)
        for (found, expected) in values(&parameters).iter().zip([0.85, -1.8, 0.375, 2.75, 0.9, 0.9]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn the_norm_is_that_before_clipping() {
        let parameters = parameters();
        let mut optimizer = AdamW::new(&parameters, &OptimizerConfig::default());
        (parameters[1].1.sum(Kind::Float) * 5.0).backward();
        let norm = optimizer.clip_gradients().unwrap();
        assert!((norm - 50f64.sqrt()).abs() < 1e-5, "{norm}");
        let clipped = parameters[1].1.grad().norm().double_value(&[]);
        assert!((clipped - 1.0).abs() < 1e-5, "{clipped}");
    }

    #[test]
    fn a_restored_optimizer_goes_on_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let config = OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::default() };
        let unbroken = parameters();
        let mut optimizer = AdamW::new(&unbroken, &config);
        descend(&unbroken, &mut optimizer, 3);
        optimizer.save(&path).unwrap();
        let resumed: Vec<_> =
            unbroken.iter().map(|(name, p)| (name.clone(), p.detach().copy().set_requires_grad(true))).collect();
        descend(&unbroken, &mut optimizer, 3);

        let mut optimizer = AdamW::new(&resumed, &config);
        optimizer.load(&path).unwrap();
        descend(&resumed, &mut optimizer, 3);
        assert_eq!(values(&unbroken), values(&resumed));
    }

    #[test]
    fn a_state_of_other_parameters_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let parameters = parameters();
        AdamW::new(&parameters, &OptimizerConfig::default()).save(&path).unwrap();
        let error = AdamW::new(&parameters[..1], &OptimizerConfig::default()).load(&path).unwrap_err();
        assert!(error.to_string().contains("norm.weight"), "{error}");
        std::fs::write(&path, b"junk").unwrap();
        assert!(AdamW::new(&parameters, &OptimizerConfig::default()).load(&path).is_err());
    }
}
