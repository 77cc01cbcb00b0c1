//! The keys of an Axolotl file beside those about data, for who prepares data.

use super::{
    axolotl::{self, Standing},
    error::SettingsError,
    keys::Settings,
    resolve::Ignored,
};

/// Why each of `keys`, none of which is about data, has no effect on a preparation.
///
/// # Errors
/// [`SettingsError::UnknownKey`] for one that is no setting either and that Axolotl does not know.
pub(crate) fn of_training(keys: &[String], origin: &str) -> Result<Vec<Ignored>, SettingsError> {
    let settings = serde_json::to_value(Settings::default()).unwrap_or_default();
    let reason = |key: &str| {
        let key = axolotl::renamed(key).unwrap_or(key);
        if settings.get(key).is_some() {
            return Some("it is about the training: `dlm train --config` reads it");
        }
        axolotl::standing(key).map(|standing| match standing {
            Standing::WithoutEffect(reason) => reason,
            Standing::OfAnotherTraining(_) => "it is about the training: `dlm train --config` judges it",
        })
    };
    let ignored = |key: &String| match reason(key) {
        Some(reason) => Ok(Ignored { key: key.clone(), origin: origin.to_owned(), reason: reason.to_owned() }),
        None => {
            let mut known: Vec<&str> = dlm_data::axolotl::known_keys().collect();
            known.extend(settings.as_object().into_iter().flat_map(serde_json::Map::keys).map(String::as_str));
            let distance = |name: &str| strsim::damerau_levenshtein(name, key);
            let nearest = known.into_iter().min_by_key(|name| distance(name));
            let nearest = nearest.filter(|name| distance(name) <= 2.max(key.len() / 3));
            Err(SettingsError::UnknownKey {
                key: key.clone(),
                origin: origin.to_owned(),
                nearest: nearest.map(str::to_owned),
            })
        }
    };
    keys.iter().map(ignored).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_training_are_ignored_and_unknown_ones_name_the_nearest() {
        let keys = ["learning_rate", "lora_r", "adapter", "flash_attention"].map(str::to_owned);
        let ignored = of_training(&keys, "a.yaml").unwrap();
        assert!(ignored.iter().map(|ignored| &ignored.key).eq(&keys));
        assert!(ignored.iter().all(|ignored| !ignored.reason.is_empty() && ignored.origin == "a.yaml"));
        for (wrong, right) in [("learning_rat", "learning_rate"), ("datasts", "datasets")] {
            let error = of_training(&[wrong.to_owned()], "a.yaml").unwrap_err();
            assert!(matches!(error, SettingsError::UnknownKey { nearest: Some(nearest), .. } if nearest == right));
        }
        assert!(matches!(of_training(&["zzz".to_owned()], "a"), Err(SettingsError::UnknownKey { nearest: None, .. })));
    }
}
