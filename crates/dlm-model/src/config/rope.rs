//! `rope_theta`, `rope_scaling` and `rope_parameters`: two generations of the same settings.

use super::LARGEST;
use crate::{
    config::keys::Keys,
    error::Result,
    rotary::{RotaryConfig, RotaryScaling},
};
use serde_json::{Value, json};

/// What transformers takes where nothing is said.
const DEFAULT_THETA: f64 = 10_000.0;

#[derive(Clone, Copy)]
enum Type {
    Default,
    Linear,
    Dynamic,
    Yarn,
    LongRope,
    Llama3,
}

const TYPES: &[(&str, Type)] = &[
    ("default", Type::Default),
    ("linear", Type::Linear),
    ("dynamic", Type::Dynamic),
    ("yarn", Type::Yarn),
    ("longrope", Type::LongRope),
    ("llama3", Type::Llama3),
];

/// What else of a config.json the settings of positions depend on.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) head_dim: i64,
    pub(super) max_position_embeddings: i64,
}

/// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before).
pub(super) fn read(keys: &mut Keys<'_>, family: &'static str, sizes: Sizes) -> Result<RotaryConfig> {
    let outer_theta = keys.positive("rope_theta")?;
    let outer_len = keys.integer("original_max_position_embeddings", 1..=LARGEST)?;
    let (old, new) = (keys.object("rope_scaling")?, keys.object("rope_parameters")?);
    if old.is_some() && new.is_some() {
        let found = keys.value("rope_scaling").unwrap_or(&Value::Null);
        return Err(keys.refused("rope_scaling", found, "absent beside `rope_parameters`"));
    }
    let Some(mut inner) = old.or(new) else {
        return Ok(RotaryConfig {
            theta: outer_theta.unwrap_or(DEFAULT_THETA),
            scaling: RotaryScaling::Default,
            full_precision: false,
        });
    };
    let inner_theta = inner.positive("rope_theta")?;
    if let (Some(outer), Some(found)) = (outer_theta, inner.value("rope_theta"))
        && inner_theta != Some(outer)
    {
        return Err(inner.refused("rope_theta", found, format!("{outer} like the one beside it")));
    }
    let theta = inner_theta.or(outer_theta).unwrap_or(DEFAULT_THETA);
    // Old files say `type` for `rope_type`, some say both.
    let (kind, old_kind) = (inner.word("rope_type", TYPES)?, inner.word("type", TYPES)?);
    let mut inner = Inner { keys: inner, outer_len, sizes };
    let scaling = match kind.or(old_kind).unwrap_or(Type::Default) {
        Type::Default => RotaryScaling::Default,
        Type::Linear => RotaryScaling::Linear { factor: inner.keys.required_positive("factor")? },
        Type::Dynamic => inner.dynamic()?,
        Type::Yarn => inner.yarn(theta)?,
        Type::LongRope => inner.long_rope()?,
        Type::Llama3 => inner.llama3()?,
    };
    inner.keys.only("partial_rotary_factor", &json!(1.0))?;
    inner.keys.finish(family, &[])?;
    Ok(RotaryConfig { theta, scaling, full_precision: false })
}

/// The object of `rope_scaling` or `rope_parameters`, and what stands outside of it.
struct Inner<'a> {
    keys: Keys<'a>,
    outer_len: Option<i64>,
    sizes: Sizes,
}

impl Inner<'_> {
    /// The length before scaling; as in transformers, one beside the object counts more than one in it.
    fn original_len(&mut self) -> Result<i64> {
        let inner = self.keys.integer("original_max_position_embeddings", 1..=LARGEST)?;
        Ok(self.outer_len.or(inner).unwrap_or(self.sizes.max_position_embeddings))
    }

    /// A factor that makes texts longer, never shorter.
    fn factor(&mut self) -> Result<Option<f64>> {
        self.keys.number("factor", "a number of at least 1", |factor| (1.0..=1e9).contains(&factor))
    }

    fn required_factor(&mut self) -> Result<f64> {
        self.factor()?.ok_or_else(|| self.keys.missing("factor"))
    }

    fn dynamic(&mut self) -> Result<RotaryScaling> {
        let factor = self.required_factor()?;
        if self.sizes.head_dim <= 2 {
            let found = json!(self.sizes.head_dim);
            return Err(self.keys.refused("head_dim", &found, "above 2, to be scaled dynamically"));
        }
        // Some files repeat the length, under which name the reference never looks for it here.
        let original_len = self.sizes.max_position_embeddings;
        self.keys.only("original_max_position_embeddings", &json!(original_len))?;
        Ok(RotaryScaling::Dynamic { factor, original_len })
    }

    fn yarn(&mut self, theta: f64) -> Result<RotaryScaling> {
        if theta <= 1.0 {
            return Err(self.keys.refused("rope_theta", &json!(theta), "above 1, to be scaled by YaRN"));
        }
        let original_len = self.original_len()?;
        let implied = self.sizes.max_position_embeddings as f64 / original_len as f64;
        let factor = self.factor()?.unwrap_or(implied).max(1.0);
        let beta_fast = self.keys.positive("beta_fast")?.unwrap_or(32.0);
        let beta_slow = self.keys.positive("beta_slow")?.unwrap_or(1.0);
        if beta_fast <= beta_slow {
            let accepted = format!("above `beta_slow`, which is {beta_slow}");
            return Err(self.keys.refused("beta_fast", &json!(beta_fast), accepted));
        }
        let scale = |mscale: f64| 0.1 * mscale * factor.ln() + 1.0;
        let not_negative = |keys: &mut Keys<'_>, key| keys.number(key, "a number of at least 0", |n| n >= 0.0);
        let mscale = not_negative(&mut self.keys, "mscale")?.filter(|mscale| *mscale > 0.0);
        let mscale_all_dim = not_negative(&mut self.keys, "mscale_all_dim")?.filter(|mscale| *mscale > 0.0);
        let implied = match (mscale, mscale_all_dim) {
            (Some(mscale), Some(all)) => scale(mscale) / scale(all),
            _ => scale(1.0),
        };
        Ok(RotaryScaling::Yarn {
            factor,
            original_len,
            beta_fast,
            beta_slow,
            truncate: self.keys.flag("truncate")?.unwrap_or(true),
            attention_factor: self.keys.positive("attention_factor")?.unwrap_or(implied),
        })
    }

    fn long_rope(&mut self) -> Result<RotaryScaling> {
        let original_len = self.original_len()?;
        let implied = self.sizes.max_position_embeddings as f64 / original_len as f64;
        let factor = self.factor()?.unwrap_or(implied);
        let scale = if factor > 1.0 && original_len > 1 {
            (1.0 + factor.ln() / (original_len as f64).ln()).sqrt()
        } else {
            1.0
        };
        let len = self.sizes.head_dim / 2;
        Ok(RotaryScaling::LongRope {
            short_factor: self.keys.required_positives("short_factor", len)?,
            long_factor: self.keys.required_positives("long_factor", len)?,
            original_len,
            attention_factor: self.keys.positive("attention_factor")?.unwrap_or(scale),
        })
    }

    fn llama3(&mut self) -> Result<RotaryScaling> {
        let factor = self.keys.required_positive("factor")?;
        let low_freq_factor = self.keys.required_positive("low_freq_factor")?;
        let high_freq_factor = self.keys.required_positive("high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            let accepted = format!("above `low_freq_factor`, which is {low_freq_factor}");
            return Err(self.keys.refused("high_freq_factor", &json!(high_freq_factor), accepted));
        }
        Ok(RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_len: self.original_len()? })
    }
}
