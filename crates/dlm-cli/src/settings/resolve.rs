//! Layers into settings, weakest first, with the origin of every value.

use super::{
    axolotl::{self, Standing},
    choices::{Compat, ObjectiveName, Strategy},
    error::{Given, SettingsError},
    keys::Settings,
    layer::Layer,
    without_effect::without_effect,
};
use figment::{
    Figment,
    error::{Actual, Kind},
    providers::Serialized,
    value::{Dict, Value},
};
use std::path::{Path, PathBuf};

/// The profiles that are part of the program.
const PROFILES: &[(&str, &str)] =
    &[("pretrain", include_str!("profiles/pretrain.toml")), ("sft", include_str!("profiles/sft.toml"))];

/// Where to look for settings beside the defaults, `dlm.toml` and the environment.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Profile: `pretrain`, `sft`, or one of `dlm.toml`.
    pub profile: Option<String>,
    /// Files in TOML or YAML, weakest first.
    pub files: Vec<PathBuf>,
    /// Assignments `key=value`, weakest first.
    pub assignments: Vec<String>,
    /// Flags that stand for a setting: the flag, the key, the value.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

/// Settings with the origin of every value.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The settings.
    pub settings: Settings,
    /// Keys of files that have no effect.
    pub ignored: Vec<Ignored>,
    figment: Figment,
}

/// A key that was given and has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The key.
    pub key: String,
    /// Where it was given.
    pub origin: String,
    /// Why it has no effect.
    pub reason: String,
}

/// Layers defaults, profile, `dlm.toml`, files, environment, assignments and flags, each stronger than the one before it.
///
/// # Errors
/// [`SettingsError`] for a file that cannot be read, an unknown key or profile, a value of the wrong kind or outside its
/// range, and values that do not go together.
pub fn resolve(sources: &Sources) -> Result<Resolved, SettingsError> {
    let mut layers = profile_layers(sources.profile.as_deref())?;
    for file in &sources.files {
        layers.push(Layer::file(file)?);
    }
    // What is no text cannot be one of our variables, whose values are all text.
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    layers.extend(Layer::environment(variables)?);
    for assignment in &sources.assignments {
        layers.push(Layer::set(assignment)?);
    }
    for (flag, key, value) in &sources.flags {
        layers.push(Layer::assignment((*flag).to_owned(), key, value)?);
    }
    stack(layers)
}

/// Reads one file alone over the defaults.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_file(path: &Path) -> Result<Resolved, SettingsError> {
    stack(vec![Layer::file(path)?])
}

impl Resolved {
    /// Where the value of a dotted key was set.
    #[must_use]
    pub fn origin(&self, key: &str) -> String {
        self.figment.find_metadata(key).map_or_else(|| DEFAULTS.to_owned(), |metadata| metadata.name.to_string())
    }

    /// Whether anything but the defaults set a dotted key.
    #[must_use]
    pub fn is_given(&self, key: &str) -> bool {
        self.origin(key) != DEFAULTS
    }
}

pub(crate) const DEFAULTS: &str = "defaults";

fn profile_layers(profile: Option<&str>) -> Result<Vec<Layer>, SettingsError> {
    let own = Layer::profiles_file(Path::new("dlm.toml"))?;
    let mut layers = Vec::new();
    if let Some(name) = profile.filter(|&name| name != "default") {
        let built_in = PROFILES.iter().find(|(known, _)| *known == name);
        if let Some((_, text)) = built_in {
            layers.push(Layer::built_in(format!("profile {name}"), text)?);
        }
        if built_in.is_none() && own.iter().all(|(known, _)| known != name) {
            let mut known: Vec<String> = PROFILES.iter().map(|(known, _)| (*known).to_owned()).collect();
            known.extend(own.iter().map(|(known, _)| known.clone()));
            known.sort();
            known.dedup();
            return Err(SettingsError::UnknownProfile { name: name.to_owned(), known });
        }
    }
    // A mistake in a profile that is not asked for is told now rather than on the day it is.
    for (_, layer) in &own {
        stack(vec![layer.clone()])?;
    }
    for wanted in [Some("default"), profile] {
        layers.extend(own.iter().filter(|(name, _)| Some(name.as_str()) == wanted).map(|(_, layer)| layer.clone()));
    }
    Ok(layers)
}

fn stack(layers: Vec<Layer>) -> Result<Resolved, SettingsError> {
    let defaults = Figment::from(Layer { origin: DEFAULTS.to_owned(), values: defaults()? });
    let mut ignored = Vec::new();
    let mut known = Vec::with_capacity(layers.len());
    for layer in layers {
        known.push(keep_settings(layer, &mut ignored)?);
    }
    let merge = |figment: Figment, layers: &[Layer]| layers.iter().cloned().fold(figment, Figment::merge);
    let mut figment = merge(defaults.clone(), &known);
    let mut settings = extract(&figment)?;
    if settings.diffusion.compat == Compat::Axolotl {
        let [weak, strong] = compat_layers()?;
        figment = merge(defaults.merge(weak), &known);
        for key in ["diffusion.noise_schedule", "diffusion.min_mask_ratio", "diffusion.max_mask_ratio"] {
            if let Some(metadata) = figment.find_metadata(key).filter(|metadata| metadata.name != DEFAULTS) {
                let reason = "`compat = \"axolotl\"` reads it and does not use it, as Axolotl".to_owned();
                ignored.push(Ignored { key: key.to_owned(), origin: metadata.name.to_string(), reason });
            }
        }
        figment = figment.merge(strong);
        settings = extract(&figment)?;
    }
    let mut resolved = Resolved { settings, ignored, figment };
    check(&resolved)?;
    let idle = without_effect(&resolved);
    resolved.ignored.extend(idle);
    Ok(resolved)
}

fn defaults() -> Result<Dict, SettingsError> {
    let provider = Serialized::defaults(Settings::default());
    figment::Provider::data(&provider)
        .map(|mut data| data.remove(&figment::Profile::Default).unwrap_or_default())
        .map_err(|error| from_figment(&error))
}

/// What Axolotl does where a file says nothing, and what it does whatever a file says.
fn compat_layers() -> Result<[Layer; 2], SettingsError> {
    let origin = || "diffusion.compat = \"axolotl\"".to_owned();
    let weak = Layer::built_in(
        origin(),
        "packing_isolation = \"row\"\n[diffusion]\naccumulation = \"micro_batch\"\nloss_normalization = \"sequence\"\n\
         loss_weight = \"inverse_p\"\nnever_mask = [\"bos\", \"eos\", \"pad\"]\ntimesteps = \"independent\"\n",
    )?;
    let mut strong = Layer::built_in(origin(), "[diffusion]\nnoise_schedule = \"linear\"\n")?;
    if let Some(Value::Dict(_, diffusion)) = strong.values.get_mut("diffusion") {
        for key in ["min_mask_ratio", "max_mask_ratio"] {
            diffusion.insert(key.to_owned(), Value::from(figment::value::Empty::None));
        }
    }
    Ok([weak, strong])
}

/// Takes out of a layer what is no setting: ignored with the reason, or refused.
fn keep_settings(layer: Layer, ignored: &mut Vec<Ignored>) -> Result<Layer, SettingsError> {
    let known = defaults()?;
    let Layer { origin, values } = layer;
    let mut kept = Dict::new();
    for (key, value) in values {
        let key = axolotl::renamed(&key).map_or(key, str::to_owned);
        match (known.get(&key), axolotl::standing(&key)) {
            (Some(Value::Dict(_, known_inner)), _) => {
                if let Value::Dict(_, inner) = &value
                    && let Some(unknown) = inner.keys().find(|inner_key| !known_inner.contains_key(*inner_key))
                {
                    return Err(unknown_key(&known, format!("{key}.{unknown}"), origin));
                }
                kept.insert(key, value);
            }
            (Some(_), _) => {
                if key == "optimizer" {
                    ignored.extend(smaller_optimizer_state(&value, &origin));
                }
                kept.insert(key, value);
            }
            (None, Some(Standing::WithoutEffect(reason))) => {
                ignored.push(Ignored { key, origin: origin.clone(), reason: reason.to_owned() });
            }
            (None, Some(Standing::OfAnotherTraining(reason))) if !is_off(&value) => {
                let found = describe(&value.to_actual());
                return Err(SettingsError::Refused { key, origin, found, reason });
            }
            (None, Some(Standing::OfAnotherTraining(_))) => {}
            (None, None) => return Err(unknown_key(&known, key, origin)),
        }
    }
    Ok(Layer { origin, values: kept })
}

fn smaller_optimizer_state(value: &Value, origin: &str) -> Option<Ignored> {
    let name = value.as_str().filter(|name| name.contains("8bit") || name.contains("paged"))?;
    let reason = format!(
        "`{name}` is AdamW with smaller moments; here they are kept in float32, or with `bfloat16: true` in bfloat16"
    );
    Some(Ignored { key: "optimizer".to_owned(), origin: origin.to_owned(), reason })
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Empty(..) | Value::Bool(_, false) => true,
        Value::String(_, text) => {
            matches!(text.to_ascii_lowercase().as_str(), "" | "auto" | "no" | "false" | "off" | "none")
        }
        Value::Num(_, number) => {
            number.to_f64() == Some(0.0) || number.to_i128() == Some(0) || number.to_u128() == Some(0)
        }
        Value::Array(_, items) => items.is_empty(),
        Value::Dict(_, items) => items.is_empty(),
        Value::Bool(_, true) | Value::Char(..) => false,
    }
}

fn unknown_key(known: &Dict, key: String, origin: String) -> SettingsError {
    let mut names: Vec<String> = Vec::new();
    for (name, value) in known {
        match value {
            Value::Dict(_, inner) => names.extend(inner.keys().map(|leaf| format!("{name}.{leaf}"))),
            _ => names.push(name.clone()),
        }
    }
    let leaf = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |name: &str| {
        let whole = strsim::damerau_levenshtein(name, &key);
        whole.min(strsim::damerau_levenshtein(&leaf(name), &leaf(&key)))
    };
    let nearest = names.into_iter().min_by_key(|name| distance(name));
    let nearest = nearest.filter(|name| distance(name) <= 2.max(key.len() / 3));
    SettingsError::UnknownKey { key, origin, nearest }
}

fn extract(figment: &Figment) -> Result<Settings, SettingsError> {
    figment.extract().map_err(|error: figment::Error| from_figment(&error))
}

fn from_figment(error: &figment::Error) -> SettingsError {
    let key = error.path.join(".");
    let origin = error.metadata.as_ref().map_or_else(|| DEFAULTS.to_owned(), |metadata| metadata.name.to_string());
    let (found, expected) = match &error.kind {
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => (describe(found), expected.clone()),
        Kind::UnknownVariant(found, expected) => (format!("`{found}`"), one_of(expected)),
        other => return SettingsError::Malformed { origin, line: None, column: None, message: other.to_string() },
    };
    SettingsError::InvalidValue { key, origin, found, expected }
}

fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => quoted.concat(),
    }
}

fn describe(value: &Actual) -> String {
    match value {
        Actual::Str(text) => format!("`{text}`"),
        Actual::Bool(value) => format!("`{value}`"),
        Actual::Unsigned(value) => format!("`{value}`"),
        Actual::Signed(value) => format!("`{value}`"),
        Actual::Float(value) => format!("`{value}`"),
        Actual::Unit | Actual::Option => "empty".to_owned(),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// What no single value can show.
fn check(resolved: &Resolved) -> Result<(), SettingsError> {
    let settings = &resolved.settings;
    let given = |key: &'static str| {
        let value = resolved.figment.find_value(key);
        let value = value.map_or_else(|_| "unset".to_owned(), |value| describe(&value.to_actual()));
        Given { key, value, origin: resolved.origin(key) }
    };
    let clash =
        |first, second, clash| Err(SettingsError::Clash { pair: Box::new((given(first), given(second))), clash });
    let diffusion = &settings.diffusion;
    if let (Some(min), Some(max)) = (diffusion.min_mask_ratio, diffusion.max_mask_ratio)
        && min > max
    {
        return clash(
            "diffusion.min_mask_ratio",
            "diffusion.max_mask_ratio",
            "leave no masking probability between them",
        );
    }
    if diffusion.objective == ObjectiveName::Autoregressive && diffusion.autoregressive_weight > 0.0 {
        return clash(
            "diffusion.objective",
            "diffusion.autoregressive_weight",
            "ask for one loss twice: the weight is for an autoregressive loss beside a masked one",
        );
    }
    let models = [
        ("base_model", settings.base_model.is_some()),
        ("model_preset", settings.model_preset.is_some()),
        ("model_config", settings.model_config.is_some()),
    ];
    let given: Vec<&'static str> = models.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
    if let [first, second, ..] = given[..] {
        return clash(first, second, "both say which model to train");
    }
    if settings.lora_target_linear == Some(true) && !settings.lora_target_modules.is_empty() {
        return clash("lora_target_linear", "lora_target_modules", "both say which linear maps are adapted");
    }
    if settings.warmup_steps.is_some()
        && resolved.is_given("warmup_ratio")
        && !resolved.origin("warmup_ratio").starts_with("profile ")
    {
        return clash("warmup_steps", "warmup_ratio", "both say how long to warm up");
    }
    let intervals = [
        (
            "eval_steps",
            settings.eval_steps.is_some(),
            "evals_per_epoch",
            settings.evals_per_epoch.is_some(),
            "eval_strategy",
            settings.eval_strategy,
        ),
        (
            "save_steps",
            settings.save_steps.is_some(),
            "saves_per_epoch",
            settings.saves_per_epoch.is_some(),
            "save_strategy",
            settings.save_strategy,
        ),
    ];
    for (steps, has_steps, per_epoch, has_per_epoch, strategy_key, strategy) in intervals {
        if has_steps && has_per_epoch {
            return clash(steps, per_epoch, "both say how often");
        }
        if strategy != Strategy::Steps && has_steps {
            return clash(strategy_key, steps, "contradict each other");
        }
        if strategy != Strategy::Steps && has_per_epoch {
            return clash(strategy_key, per_epoch, "contradict each other");
        }
    }
    Ok(())
}
