//! What is no error of prepared data and probably not meant, in words, as far as the manifest tells it.

use crate::{manifest::Manifest, pipeline::Pipeline};

/// What there is to warn of.
pub(crate) fn of(manifest: &Manifest, pipeline: &Pipeline) -> Vec<String> {
    let account = &manifest.account;
    let mut warnings = Vec::new();
    if !account.ignored_fields.is_empty() {
        let fields = account.ignored_fields.iter();
        let fields: Vec<String> = fields.map(|(field, count)| format!("`{field}` ({count} messages)")).collect();
        warnings.push(format!(
            "the chat template leaves out what messages have in {}: take a template that writes it, or give it a name that this \
             template knows with `message_property_mappings`",
            fields.join(", ")
        ));
    }
    for what in &account.unseen {
        warnings.push(format!("no message has the {what}: look for a misspelling, or leave it out"));
    }
    if let Some(split) = pipeline.split_step() {
        let (share, documents) = (split.validation, account.documents);
        let side = |name: &str| {
            format!(
                "the step `split` put none of {documents} documents on the {name} side (`validation` is {share}): choose another share, or \
                 another `seed`"
            )
        };
        warnings.extend(manifest.validation.is_none().then(|| side("validation")));
        warnings.extend((manifest.train.rows == 0).then(|| side("train")));
    }
    warnings
}
