//! The settings whose value is one of a few names, beyond those that the other crates define.

use serde::{Deserialize, Serialize};

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)*
        }
    )*};
}

/// Whether matrices are multiplied in bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bf16 {
    /// Never.
    Off,
    /// Always.
    On,
    /// Where the processor has instructions for it.
    Auto,
}

impl Serialize for Bf16 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::On => serializer.serialize_bool(true),
            Self::Auto => serializer.serialize_str("auto"),
        }
    }
}

impl<'de> Deserialize<'de> for Bf16 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::lenient::one::<super::lenient::Bf16Switch, _>(deserializer)
    }
}

choices! {
    /// What updates the weights. Every spelling of AdamW that Axolotl knows is accepted.
    Optimizer {
        /// AdamW with moments in float32.
        #[serde(
            rename = "adamw",
            alias = "adamw_torch",
            alias = "adamw_torch_fused",
            alias = "adamw_hf",
            alias = "adamw_8bit",
            alias = "adamw_bnb_8bit",
            alias = "adamw_torch_8bit",
            alias = "paged_adamw_8bit",
            alias = "paged_adamw_32bit",
        )]
        AdamW,
    }

    /// Which part of the model is trained beside frozen weights.
    Adapter {
        /// Small matrices beside the linear maps.
        Lora,
    }

    /// What decides when something is done in the course of training.
    Strategy {
        /// A number of steps.
        Steps,
        /// The end of each epoch.
        Epoch,
        /// Only the end of the run.
        No,
    }

    /// Where a Weights & Biases run goes.
    WandbMode {
        /// To the server.
        Online,
        /// To files, to be sent later.
        Offline,
        /// Nowhere.
        Disabled,
    }

    /// What is learnt.
    ObjectiveName {
        /// To fill in masks.
        Masked,
        /// To continue a text token by token: the baseline that masked diffusion is compared with.
        Autoregressive,
    }

    /// Whose reading of the settings to reproduce.
    Compat {
        /// The one documented here.
        None,
        /// Axolotl's diffusion plugin: always the linear schedule over its whole range, bos, eos and pad never masked,
        /// rows as units, losses per sequence and averaged over micro-batches.
        Axolotl,
    }
}
